#include "thinwire/moe/rows/row_ops.h"

#include <numeric>

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "thinwire/common/error.h"

namespace thinwire::moe {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Entries in order of the output row they add to; equal ones stay in the order of the list.
struct ByOutput {
  std::vector<std::int64_t> begin;  // [outputs + 1]
  std::vector<std::int32_t> entry;

  ByOutput(const std::vector<std::int32_t>& to, std::int64_t outputs)
      : begin(static_cast<std::size_t>(outputs) + 1, 0), entry(to.size()) {
    for (const std::int32_t row : to) ++begin[static_cast<std::size_t>(row) + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<std::int64_t> next(begin.begin(), begin.end() - 1);
    for (std::size_t i = 0; i < to.size(); ++i) {
      entry[static_cast<std::size_t>(next[static_cast<std::size_t>(to[i])]++)] =
          static_cast<std::int32_t>(i);
    }
  }
};

at::Tensor index_tensor(const std::vector<std::int32_t>& index, const at::Tensor& like) {
  const auto host = at::from_blob(const_cast<std::int32_t*>(index.data()),
                                  {static_cast<std::int64_t>(index.size())}, at::kInt);
  return host.to(like.device(), at::kLong);
}

// result[to[i]] += weight[i] · rows[from[i]], without autograd. `weight` may be undefined.
at::Tensor multiply(const at::Tensor& input, const at::Tensor& weight,
                    const std::vector<std::int32_t>& from, const std::vector<std::int32_t>& to,
                    std::int64_t outputs) {
  const at::Tensor rows = input.contiguous();
  const std::int64_t dim = rows.size(1);
  if (!rows.is_cpu()) {
    at::Tensor picked = rows.index_select(0, index_tensor(from, rows));
    if (weight.defined()) picked = picked * weight.to(picked.scalar_type()).unsqueeze(1);
    return at::zeros({outputs, dim}, rows.options()).index_add(0, index_tensor(to, rows), picked);
  }
  at::Tensor result = at::empty({outputs, dim}, rows.options());
  const ByOutput order(to, outputs);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, rows.scalar_type(), "map_rows", [&] {
    using Sum = at::opmath_type<scalar_t>;
    const at::Tensor factors =
        weight.defined() ? weight.to(c10::CppTypeToScalarType<Sum>::value).contiguous() : weight;
    const Sum* factor = weight.defined() ? factors.const_data_ptr<Sum>() : nullptr;
    const scalar_t* source = rows.const_data_ptr<scalar_t>();
    scalar_t* target = result.data_ptr<scalar_t>();
    at::parallel_for(0, outputs, 64, [&](std::int64_t begin, std::int64_t end) {
      std::vector<Sum> sum(static_cast<std::size_t>(dim));
      for (std::int64_t o = begin; o < end; ++o) {
        std::fill(sum.begin(), sum.end(), Sum(0));
        for (std::int64_t i = order.begin[static_cast<std::size_t>(o)];
             i < order.begin[static_cast<std::size_t>(o) + 1]; ++i) {
          const auto e = static_cast<std::size_t>(order.entry[static_cast<std::size_t>(i)]);
          const scalar_t* row = source + from[e] * dim;
          if (factor != nullptr) {
            const Sum w = factor[e];
            for (std::int64_t j = 0; j < dim; ++j) sum[j] += w * static_cast<Sum>(row[j]);
          } else {
            for (std::int64_t j = 0; j < dim; ++j) sum[j] += static_cast<Sum>(row[j]);
          }
        }
        for (std::int64_t j = 0; j < dim; ++j) {
          target[o * dim + j] = static_cast<scalar_t>(sum[j]);
        }
      }
    });
  });
  return result;
}

// <a[a_row[i]], b[b_row[i]]> for every entry i, in the dtype of `like`.
at::Tensor row_products(const at::Tensor& a_rows, const std::vector<std::int32_t>& a_row,
                        const at::Tensor& b_rows, const std::vector<std::int32_t>& b_row,
                        const at::Tensor& like) {
  const at::Tensor a = a_rows.contiguous();
  const at::Tensor b = b_rows.contiguous();
  const auto entries = static_cast<std::int64_t>(a_row.size());
  if (!a.is_cpu()) {
    return (a.index_select(0, index_tensor(a_row, a)) * b.index_select(0, index_tensor(b_row, b)))
        .sum(1)
        .to(like.scalar_type());
  }
  at::Tensor result = at::empty({entries}, a.options().dtype(at::kDouble));
  double* out = result.data_ptr<double>();
  const std::int64_t dim = a.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, a.scalar_type(), "row_products", [&] {
    const scalar_t* a_data = a.const_data_ptr<scalar_t>();
    const scalar_t* b_data = b.const_data_ptr<scalar_t>();
    at::parallel_for(0, entries, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const scalar_t* x = a_data + a_row[static_cast<std::size_t>(i)] * dim;
        const scalar_t* y = b_data + b_row[static_cast<std::size_t>(i)] * dim;
        double sum = 0;
        for (std::int64_t j = 0; j < dim; ++j) {
          sum += static_cast<double>(x[j]) * static_cast<double>(y[j]);
        }
        out[i] = sum;
      }
    });
  });
  return result.to(like.scalar_type());
}

RowMapPtr map_of(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<RowMap>(ctx->saved_data["map"].toCapsule());
}

class MapRows : public torch::autograd::Function<MapRows> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows, const RowMapPtr& map) {
    ctx->saved_data["map"] = c10::IValue::make_capsule(map);
    return multiply(rows, {}, map->from, map->to, map->outputs);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto map = map_of(ctx);
    return {multiply(gradients[0], {}, map->to, map->from, map->inputs), {}};
  }
};

class MapWeightedRows : public torch::autograd::Function<MapWeightedRows> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows, const at::Tensor& weight,
                            const RowMapPtr& map) {
    ctx->saved_data["map"] = c10::IValue::make_capsule(map);
    ctx->save_for_backward({rows, weight});
    return multiply(rows, weight, map->from, map->to, map->outputs);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto map = map_of(ctx);
    const auto saved = ctx->get_saved_variables();
    const at::Tensor& gradient = gradients[0];
    at::Tensor rows_gradient, weight_gradient;
    if (ctx->needs_input_grad(0)) {
      rows_gradient = multiply(gradient, saved[1], map->to, map->from, map->inputs);
    }
    if (ctx->needs_input_grad(1)) {
      weight_gradient = row_products(gradient, map->to, saved[0], map->from, saved[1]);
    }
    return {rows_gradient, weight_gradient, {}};
  }
};

class MapRowsTo : public torch::autograd::Function<MapRowsTo> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& values,
                            const at::Tensor& /*rows*/, const at::Tensor& weight,
                            const RowMapPtr& map) {
    ctx->saved_data["map"] = c10::IValue::make_capsule(map);
    ctx->save_for_backward({weight});
    return values.view_as(values);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto map = map_of(ctx);
    const at::Tensor weight = ctx->get_saved_variables()[0];
    return {{}, multiply(gradients[0], weight, map->to, map->from, map->inputs), {}, {}};
  }
};

class ScaleGradient : public torch::autograd::Function<ScaleGradient> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, double factor) {
    ctx->saved_data["factor"] = factor;
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    return {gradients[0] * ctx->saved_data["factor"].toDouble(), {}};
  }
};

void check_rows(const at::Tensor& rows, const RowMap& map) {
  check(rows.dim() == 2 && rows.size(0) == map.inputs, "a matrix of ", map.inputs,
        " rows expected, got shape ", rows.sizes());
}

}  // namespace

RowMap::RowMap(std::vector<std::int32_t> from_rows, std::vector<std::int32_t> to_rows,
               std::int64_t input_rows, std::int64_t output_rows)
    : from(std::move(from_rows)), to(std::move(to_rows)), inputs(input_rows), outputs(output_rows) {
  THINWIRE_ASSERT(from.size() == to.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    THINWIRE_ASSERT(from[i] >= 0 && from[i] < inputs && to[i] >= 0 && to[i] < outputs);
  }
}

RowMapPtr gather_map(std::vector<std::int32_t> index, std::int64_t inputs) {
  std::vector<std::int32_t> to(index.size());
  std::iota(to.begin(), to.end(), 0);
  const auto outputs = static_cast<std::int64_t>(index.size());
  return c10::make_intrusive<RowMap>(std::move(index), std::move(to), inputs, outputs);
}

at::Tensor map_rows(const at::Tensor& rows, const RowMapPtr& map) {
  check_rows(rows, *map);
  return MapRows::apply(rows, map);
}

at::Tensor map_rows(const at::Tensor& rows, const at::Tensor& weight, const RowMapPtr& map) {
  check_rows(rows, *map);
  check(weight.dim() == 1 && weight.size(0) == map->entries(), map->entries(),
        " weights expected, got shape ", weight.sizes());
  return MapWeightedRows::apply(rows, weight, map);
}

at::Tensor map_rows_to(const at::Tensor& values, const at::Tensor& rows, const at::Tensor& weight,
                       const RowMapPtr& map) {
  check_rows(rows, *map);
  check(values.dim() == 2 && values.size(0) == map->outputs && values.size(1) == rows.size(1),
        "values of shape [", map->outputs, ", ", rows.size(1), "] expected, got ", values.sizes());
  return MapRowsTo::apply(values, rows, weight, map);
}

at::Tensor scale_gradient(const at::Tensor& x, double factor) {
  return factor == 1.0 ? x : ScaleGradient::apply(x, factor);
}

}  // namespace thinwire::moe
