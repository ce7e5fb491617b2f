#include "thinwire/comm/backend/mpi/arguments.h"

#include <cstring>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "thinwire/common/error.h"

namespace thinwire::comm::mpi {

using at::Tensor;
using c10d::ReduceOp;
using Tensors = std::vector<Tensor>;

const Tensor& only(const Tensors& tensors, const char* operation) {
  check(tensors.size() == 1, operation, " takes one tensor per rank, got ", tensors.size());
  return tensors[0];
}

void check_like(const Tensor& tensor, const Tensor& model, const char* operation) {
  check(tensor.scalar_type() == model.scalar_type() && tensor.numel() == model.numel(), operation,
        " needs tensors of one type and size, got ", tensor.scalar_type(), " ", tensor.sizes(),
        " and ", model.scalar_type(), " ", model.sizes());
}

at::ScalarType common_type(const Tensors& tensors, const char* operation) {
  check(!tensors.empty(), operation, " got no tensor");
  for (const Tensor& tensor : tensors)
    check(tensor.scalar_type() == tensors[0].scalar_type(), operation,
          " needs tensors of one type, got ", tensor.scalar_type(), " and ",
          tensors[0].scalar_type());
  return tensors[0].scalar_type();
}

void copy_block(const Block& to, const Block& from) {
  if (to.data != from.data && from.bytes > 0) std::memcpy(to.data, from.data, from.bytes);
}

std::vector<Block> equal_parts(const Block& whole, std::size_t count) {
  std::vector<Block> parts;
  for (std::size_t i = 0; i < count; ++i)
    parts.push_back(
        {static_cast<char*>(whole.data) + i * (whole.bytes / count), whole.bytes / count});
  return parts;
}

Tensor part_of(const Tensor& tensor, std::int64_t index, std::int64_t count,
               const char* operation) {
  check(tensor.is_contiguous(), operation, " needs contiguous tensors, got strides ",
        tensor.strides(), " for shape ", tensor.sizes());
  const std::int64_t length = tensor.numel() / count;
  return tensor.view({-1}).narrow(0, index * length, length);
}

Tensors premultiplied(const ReduceOp& op, const Tensors& tensors) {
  if (op.op_ != ReduceOp::PREMUL_SUM) return tensors;
  const auto* supplement = dynamic_cast<const c10d::NCCLPreMulSumSupplement*>(op.supplement_.get());
  check(supplement != nullptr, "PREMUL_SUM needs a factor, see c10d::makeNCCLPreMulSum()");
  const at::NoGradGuard no_grad;
  Tensors products;
  for (const Tensor& tensor : tensors) {
    const Tensor& factor = supplement->tensor_factor;
    products.push_back(factor.defined()
                           ? at::mul(tensor, factor.to(tensor.scalar_type()).reshape({}))
                           : at::mul(tensor, supplement->double_factor));
  }
  return products;
}

int place_among(const std::vector<int>& ranks, int rank, int size) {
  std::vector<bool> seen(static_cast<std::size_t>(size), false);
  int place = -1;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    check(ranks[i] >= 0 && ranks[i] < size, "a rank of a group of ", size, " must be in [0, ", size,
          "), got ", ranks[i]);
    check(!seen[static_cast<std::size_t>(ranks[i])], "rank ", ranks[i],
          " is listed twice among those of a new group");
    seen[static_cast<std::size_t>(ranks[i])] = true;
    if (ranks[i] == rank) place = static_cast<int>(i);
  }
  return place;
}

std::vector<Block> rows(const Block& whole, const Tensor& tensor,
                        const std::vector<std::int64_t>& splits, int size, const char* name) {
  const auto places = static_cast<std::size_t>(size);
  const std::int64_t count = tensor.dim() == 0 ? 1 : tensor.size(0);
  if (splits.empty()) {
    check(count % size == 0, "all_to_all without splits needs ", name, " rows that divide by the ",
          size, " ranks, got ", count);
    return equal_parts(whole, places);
  }
  std::int64_t sum = 0;
  for (const std::int64_t length : splits) {
    check(length >= 0, "all_to_all got the negative ", name, " split ", length);
    sum += length;
  }
  check(splits.size() == places && sum == count, "all_to_all needs ", size, " ", name,
        " splits whose sum is the ", count, " rows, got ", splits.size(), " with the sum ", sum);
  const std::size_t row = count == 0 ? 0 : whole.bytes / static_cast<std::size_t>(count);
  std::vector<Block> blocks;
  std::size_t offset = 0;
  for (const std::int64_t length : splits) {
    const std::size_t bytes = static_cast<std::size_t>(length) * row;
    blocks.push_back({static_cast<char*>(whole.data) + offset, bytes});
    offset += bytes;
  }
  return blocks;
}

}  // namespace thinwire::comm::mpi
