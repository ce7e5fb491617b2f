// Products of a sparse matrix with a matrix of rows, differentiable. Permuting tokens, merging
// them into centroids and summing the results of several experts are all of this form.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

namespace thinwire::moe {

// A sparse 0/1 matrix as a list of entries: row `to[i]` of the product adds row `from[i]` of the
// input. Immutable once shared. Sums are taken in the order of the list, whatever the number of
// threads, so results are reproducible bit for bit on the CPU.
struct RowMap : torch::CustomClassHolder {
  std::vector<std::int32_t> from;
  std::vector<std::int32_t> to;
  std::int64_t inputs = 0;   // rows of the input
  std::int64_t outputs = 0;  // rows of the product
  // Whether no row of the product, or of the input, appears in two entries: then rows are copied
  // that way, not added up.
  bool once_to = false;
  bool once_from = false;

  RowMap(std::vector<std::int32_t> from_rows, std::vector<std::int32_t> to_rows,
         std::int64_t input_rows, std::int64_t output_rows);
  std::int64_t entries() const { return static_cast<std::int64_t>(from.size()); }
};
using RowMapPtr = c10::intrusive_ptr<RowMap>;

// Output row i is input row index[i].
RowMapPtr gather_map(std::vector<std::int32_t> index, std::int64_t inputs);

// Row numbers as a tensor of int64, for at::index_select() and its like.
at::Tensor index_tensor(const std::vector<std::int32_t>& rows, at::Device device);

// [inputs, d] -> [outputs, d]. Differentiable in `rows`, any number of times.
at::Tensor map_rows(const at::Tensor& rows, const RowMapPtr& map);

// The same with a factor for every entry, weight: [entries]; accumulates in float32 for half types
// and rounds once. Differentiable in `rows` and `weight`, any number of times. Throws
// InvalidArgument when shapes do not fit.
at::Tensor map_rows(const at::Tensor& rows, const at::Tensor& weight, const RowMapPtr& map);

// `values` [outputs, d], with the gradient that map_rows(rows, weight, map) would pass to `rows`;
// for values that were computed with more care than map_rows() takes.
at::Tensor map_rows_to(const at::Tensor& values, const at::Tensor& rows, const at::Tensor& weight,
                       const RowMapPtr& map);

// x itself; its gradient is multiplied by `factor`. The factor is not part of the function, so the
// derivative of that gradient is not multiplied again: see Note [Expert gradient scale].
at::Tensor scale_gradient(const at::Tensor& x, double factor);

}  // namespace thinwire::moe
