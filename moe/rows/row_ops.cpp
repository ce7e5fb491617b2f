#include "thinwire/moe/rows/row_ops.h"

#include <cstring>
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

// The two sides of a map, in the direction that is wanted: row `to[i]` of the product adds row
// `from[i]` of the input.
struct Entries {
  const std::vector<std::int32_t>& from;
  const std::vector<std::int32_t>& to;
  std::int64_t outputs;
  bool once;  // no row of the product has two entries

  Entries(const RowMap& map, bool transposed)
      : from(transposed ? map.to : map.from),
        to(transposed ? map.from : map.to),
        outputs(transposed ? map.inputs : map.outputs),
        once(transposed ? map.once_from : map.once_to) {}
};

// Rows of the host, each with at most one source; rows without one are zero.
at::Tensor copy_rows(const at::Tensor& input, const Entries& entries) {
  const at::Tensor rows = input.stride(1) == 1 ? input : input.contiguous();
  std::vector<std::int32_t> source(static_cast<std::size_t>(entries.outputs), -1);
  for (std::size_t i = 0; i < entries.to.size(); ++i) {
    source[static_cast<std::size_t>(entries.to[i])] = entries.from[i];
  }
  at::Tensor result = at::empty({entries.outputs, rows.size(1)}, rows.options());
  const auto size = static_cast<std::size_t>(rows.element_size());
  const std::size_t bytes = static_cast<std::size_t>(rows.size(1)) * size;
  const std::size_t stride = static_cast<std::size_t>(rows.stride(0)) * size;
  const auto* from = static_cast<const std::byte*>(rows.const_data_ptr());
  auto* to = static_cast<std::byte*>(result.mutable_data_ptr());
  at::parallel_for(0, entries.outputs, 64, [&](std::int64_t begin, std::int64_t end) {
    for (auto o = static_cast<std::size_t>(begin); o < static_cast<std::size_t>(end); ++o) {
      if (source[o] < 0) {
        std::memset(to + o * bytes, 0, bytes);
      } else {
        std::memcpy(to + o * bytes, from + static_cast<std::size_t>(source[o]) * stride, bytes);
      }
    }
  });
  return result;
}

// result[to[i]] += weight[i] · rows[from[i]], without autograd. `weight` may be undefined.
at::Tensor multiply(const at::Tensor& input, const at::Tensor& weight, const RowMap& map,
                    bool transposed) {
  const Entries entries(map, transposed);
  if (!input.is_cpu()) {
    at::Tensor picked = input.index_select(0, index_tensor(entries.from, input.device()));
    if (weight.defined()) picked = picked * weight.to(picked.scalar_type()).unsqueeze(1);
    return at::zeros({entries.outputs, input.size(1)}, input.options())
        .index_add(0, index_tensor(entries.to, input.device()), picked);
  }
  if (entries.once && !weight.defined()) return copy_rows(input, entries);
  const at::Tensor rows = input.contiguous();
  const std::int64_t dim = rows.size(1);
  at::Tensor result = at::empty({entries.outputs, dim}, rows.options());
  const ByOutput order(entries.to, entries.outputs);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, rows.scalar_type(), "map_rows", [&] {
    using Sum = at::opmath_type<scalar_t>;
    const at::Tensor factors =
        weight.defined() ? weight.to(c10::CppTypeToScalarType<Sum>::value).contiguous() : weight;
    const Sum* factor = weight.defined() ? factors.const_data_ptr<Sum>() : nullptr;
    const scalar_t* source = rows.const_data_ptr<scalar_t>();
    scalar_t* target = result.data_ptr<scalar_t>();
    at::parallel_for(0, entries.outputs, 64, [&](std::int64_t begin, std::int64_t end) {
      std::vector<Sum> sum(static_cast<std::size_t>(dim));
      for (std::int64_t o = begin; o < end; ++o) {
        std::fill(sum.begin(), sum.end(), Sum(0));
        for (std::int64_t i = order.begin[static_cast<std::size_t>(o)];
             i < order.begin[static_cast<std::size_t>(o) + 1]; ++i) {
          const auto e = static_cast<std::size_t>(order.entry[static_cast<std::size_t>(i)]);
          const scalar_t* row = source + entries.from[e] * dim;
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

// <a[a_row[i]], b[b_row[i]]> for every entry i, in `dtype`, without autograd.
at::Tensor multiply_rows(const at::Tensor& a_rows, const std::vector<std::int32_t>& a_row,
                         const at::Tensor& b_rows, const std::vector<std::int32_t>& b_row,
                         at::ScalarType dtype) {
  const at::Tensor a = a_rows.contiguous();
  const at::Tensor b = b_rows.contiguous();
  const auto entries = static_cast<std::int64_t>(a_row.size());
  if (!a.is_cpu()) {
    return (a.index_select(0, index_tensor(a_row, a.device())) *
            b.index_select(0, index_tensor(b_row, b.device())))
        .sum(1)
        .to(dtype);
  }
  at::Tensor result = at::empty({entries}, a.options().dtype(at::kDouble));
  double* out = result.data_ptr<double>();
  const std::int64_t dim = a.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, a.scalar_type(), "multiply_rows", [&] {
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
  return result.to(dtype);
}

// What a node of the graph keeps of its arguments.
void save_map(AutogradContext* ctx, const RowMapPtr& map, bool transposed) {
  ctx->saved_data["map"] = c10::IValue::make_capsule(map);
  ctx->saved_data["transposed"] = transposed;
}
RowMapPtr map_of(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<RowMap>(ctx->saved_data["map"].toCapsule());
}
bool transposed_of(AutogradContext* ctx) {
  return ctx->saved_data["transposed"].toBool();
}

// The derivatives of these are themselves made of these, so that they can be taken again. With
// `transposed` the map is read backwards, from its outputs to its inputs.
at::Tensor mapped(const at::Tensor& rows, const RowMapPtr& map, bool transposed);
at::Tensor weighted(const at::Tensor& rows, const at::Tensor& weight, const RowMapPtr& map,
                    bool transposed);
// <product[to[i]], input[from[i]]> for every entry i: [entries].
at::Tensor row_products(const at::Tensor& product, const at::Tensor& input, const RowMapPtr& map,
                        bool transposed, at::ScalarType dtype);

class MapRows : public torch::autograd::Function<MapRows> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows, const RowMapPtr& map,
                            bool transposed) {
    save_map(ctx, map, transposed);
    return multiply(rows, {}, *map, transposed);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    return {mapped(gradients[0], map_of(ctx), !transposed_of(ctx)), {}, {}};
  }
};

class MapWeightedRows : public torch::autograd::Function<MapWeightedRows> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows, const at::Tensor& weight,
                            const RowMapPtr& map, bool transposed) {
    save_map(ctx, map, transposed);
    ctx->save_for_backward({rows, weight});
    return multiply(rows, weight, *map, transposed);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto map = map_of(ctx);
    const bool transposed = transposed_of(ctx);
    const auto saved = ctx->get_saved_variables();
    at::Tensor rows_gradient, weight_gradient;
    if (ctx->needs_input_grad(0)) {
      rows_gradient = weighted(gradients[0], saved[1], map, !transposed);
    }
    if (ctx->needs_input_grad(1)) {
      weight_gradient =
          row_products(gradients[0], saved[0], map, transposed, saved[1].scalar_type());
    }
    return {rows_gradient, weight_gradient, {}, {}};
  }
};

class RowProducts : public torch::autograd::Function<RowProducts> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& product,
                            const at::Tensor& input, const RowMapPtr& map, bool transposed,
                            at::ScalarType dtype) {
    save_map(ctx, map, transposed);
    ctx->save_for_backward({product, input});
    const Entries entries(*map, transposed);
    return multiply_rows(product, entries.to, input, entries.from, dtype);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto map = map_of(ctx);
    const bool transposed = transposed_of(ctx);
    const auto saved = ctx->get_saved_variables();
    at::Tensor product_gradient, input_gradient;
    if (ctx->needs_input_grad(0)) {
      product_gradient = weighted(saved[1], gradients[0], map, transposed);
    }
    if (ctx->needs_input_grad(1)) {
      input_gradient = weighted(saved[0], gradients[0], map, !transposed);
    }
    return {product_gradient, input_gradient, {}, {}, {}};
  }
};

at::Tensor mapped(const at::Tensor& rows, const RowMapPtr& map, bool transposed) {
  return MapRows::apply(rows, map, transposed);
}
at::Tensor weighted(const at::Tensor& rows, const at::Tensor& weight, const RowMapPtr& map,
                    bool transposed) {
  return MapWeightedRows::apply(rows, weight, map, transposed);
}
at::Tensor row_products(const at::Tensor& product, const at::Tensor& input, const RowMapPtr& map,
                        bool transposed, at::ScalarType dtype) {
  return RowProducts::apply(product, input, map, transposed, dtype);
}

class MapRowsTo : public torch::autograd::Function<MapRowsTo> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& values,
                            const at::Tensor& /*rows*/, const at::Tensor& weight,
                            const RowMapPtr& map) {
    save_map(ctx, map, false);
    ctx->save_for_backward({weight});
    return values.view_as(values);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const at::Tensor weight = ctx->get_saved_variables()[0];
    return {{}, weighted(gradients[0], weight, map_of(ctx), true), {}, {}};
  }
};

// `gradient` times `factor`, which is a constant of the training and not of the function.
class ScaledOnce : public torch::autograd::Function<ScaledOnce> {
 public:
  static at::Tensor forward(AutogradContext*, const at::Tensor& gradient, double factor) {
    return gradient * factor;
  }
  static variable_list backward(AutogradContext*, variable_list gradients) {
    return {gradients[0], {}};
  }
};

class ScaleGradient : public torch::autograd::Function<ScaleGradient> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, double factor) {
    ctx->saved_data["factor"] = factor;
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    return {ScaledOnce::apply(gradients[0], ctx->saved_data["factor"].toDouble()), {}};
  }
};

// Whether no number appears twice; they lie in [0, count).
bool all_differ(const std::vector<std::int32_t>& rows, std::int64_t count) {
  if (static_cast<std::int64_t>(rows.size()) > count) return false;
  std::vector<bool> seen(static_cast<std::size_t>(count), false);
  for (const std::int32_t row : rows) {
    if (seen[static_cast<std::size_t>(row)]) return false;
    seen[static_cast<std::size_t>(row)] = true;
  }
  return true;
}

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
  once_to = all_differ(to, outputs);
  once_from = all_differ(from, inputs);
}

at::Tensor index_tensor(const std::vector<std::int32_t>& rows, at::Device device) {
  const at::Tensor host = at::from_blob(const_cast<std::int32_t*>(rows.data()),
                                        {static_cast<std::int64_t>(rows.size())}, at::kInt);
  return host.to(device, at::kLong);
}

RowMapPtr gather_map(std::vector<std::int32_t> index, std::int64_t inputs) {
  std::vector<std::int32_t> to(index.size());
  std::iota(to.begin(), to.end(), 0);
  const auto outputs = static_cast<std::int64_t>(index.size());
  return c10::make_intrusive<RowMap>(std::move(index), std::move(to), inputs, outputs);
}

at::Tensor map_rows(const at::Tensor& rows, const RowMapPtr& map) {
  check_rows(rows, *map);
  return mapped(rows, map, false);
}

at::Tensor map_rows(const at::Tensor& rows, const at::Tensor& weight, const RowMapPtr& map) {
  check_rows(rows, *map);
  check(weight.dim() == 1 && weight.size(0) == map->entries(), map->entries(),
        " weights expected, got shape ", weight.sizes());
  return weighted(rows, weight, map, false);
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
