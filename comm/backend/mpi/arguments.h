// What the operations of the MPI backend ask of their arguments, and where the parts of them lie.
// Everything here throws InvalidArgument, with `operation` and the values in the text.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include "thinwire/comm/backend/mpi/schedule.h"

namespace thinwire::comm::mpi {

// The single tensor of a list.
const at::Tensor& only(const std::vector<at::Tensor>& tensors, const char* operation);
// Checks that both have one type and one number of elements.
void check_like(const at::Tensor& tensor, const at::Tensor& model, const char* operation);
// The type that all tensors have; those of one reduction share a buffer.
at::ScalarType common_type(const std::vector<at::Tensor>& tensors, const char* operation);

void copy_block(const Block& to, const Block& from);
// `count` equal parts of a block.
std::vector<Block> equal_parts(const Block& whole, std::size_t count);
// Part `index` of a contiguous tensor seen as `count` equal parts.
at::Tensor part_of(const at::Tensor& tensor, std::int64_t index, std::int64_t count,
                   const char* operation);
// The index of `rank` in `ranks`, -1 where it is not there; for a new group of these ranks of one
// of `size`.
int place_among(const std::vector<int>& ranks, int rank, int size);
// The blocks of an all_to_all over the rows of `tensor`, whose memory is `whole`; no splits: equal
// parts. `name` is "input" or "output".
std::vector<Block> rows(const Block& whole, const at::Tensor& tensor,
                        const std::vector<std::int64_t>& splits, int size, const char* name);

// What this rank contributes: for PREMUL_SUM its tensors times its own factor, else the tensors.
std::vector<at::Tensor> premultiplied(const c10d::ReduceOp& op,
                                      const std::vector<at::Tensor>& tensors);

}  // namespace thinwire::comm::mpi
