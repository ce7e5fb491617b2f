// Reducing the contributions of all ranks on one of them, always in rank order.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

namespace thinwire::comm {

// Throws InvalidArgument for a pair of operation and type without meaning: bitwise operations on
// floating point, MIN and MAX of complex numbers, AVG of integers, any arithmetic on 8-bit floats.
void check_reducible(const c10d::ReduceOp& op, at::ScalarType type);

// out[i] = op of contributions[0][i], contributions[1][i], ... in this order, so that the result
// depends neither on who computes it nor on how many elements are computed at once.
//
// `numel` elements of `type` each; `out` may be one of the contributions. float16, bfloat16 and
// complex32 are accumulated in float32 and rounded once. Integers wrap around. NaN wins in MIN and
// MAX. SUM and MAX of bool are "or", PRODUCT and MIN are "and". AVG divides the sum by the number
// of contributions. PREMUL_SUM sums: its factor is for the contributor to apply.
// Precondition: check_reducible() passed. Thread-safe.
void reduce_in_rank_order(const c10d::ReduceOp& op, at::ScalarType type,
                          const std::vector<const void*>& contributions, std::int64_t numel,
                          void* out);

}  // namespace thinwire::comm
