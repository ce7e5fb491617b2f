// A Mixture-of-Experts layer as a plain loop over tokens and experts on one rank, for comparison.
#pragma once

#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "thinwire/moe/layer/moe_layer.h"

namespace thinwire::moe::testing {

// Parameters of all experts by global number, leaves of a graph of their own.
struct ReferenceExperts {
  struct One {
    at::Tensor w1, b1, w2, b2;
  };
  std::vector<One> experts;

  explicit ReferenceExperts(const NamedTensors& state, std::int64_t count) {
    const auto leaf = [&](std::int64_t e, const char* name) {
      return state.at("experts." + std::to_string(e) + "." + name)
          .clone()
          .detach()
          .requires_grad_();
    };
    for (std::int64_t e = 0; e < count; ++e) {
      experts.push_back({leaf(e, "w1"), leaf(e, "b1"), leaf(e, "w2"), leaf(e, "b2")});
    }
  }

  at::Tensor operator()(std::int64_t e, const at::Tensor& x) const {
    const One& one = experts[static_cast<std::size_t>(e)];
    return at::matmul(at::gelu(at::matmul(x, one.w1) + one.b1), one.w2) + one.b2;
  }
};

// output[t] = sum over the pairs of t that are within capacity of weight · expert(x[t]), pair by
// pair. Softmax gate with k choices, whose weights are normalised where there are several; capacity
// drops later choices and higher tokens first.
inline at::Tensor reference_layer(const at::Tensor& x, const at::Tensor& gate,
                                  const ReferenceExperts& experts, std::int64_t k,
                                  std::int64_t capacity) {
  const auto count = static_cast<std::int64_t>(experts.experts.size());
  const at::Tensor scores = at::softmax(at::matmul(x, gate.t()), 1);
  const at::Tensor order = std::get<1>(scores.detach().sort(true, 1, true));
  std::vector<at::Tensor> output(static_cast<std::size_t>(x.size(0)));
  std::vector<std::int64_t> load(static_cast<std::size_t>(count), 0);
  for (auto& row : output) row = at::zeros({x.size(1)}, x.options());
  for (std::int64_t choice = 0; choice < k; ++choice) {
    for (std::int64_t t = 0; t < x.size(0); ++t) {
      const auto e = order[t][choice].item<std::int64_t>();
      if (load[static_cast<std::size_t>(e)]++ >= capacity) continue;
      at::Tensor norm = at::full({}, k == 1 ? 1.0 : 0.0, x.options());
      for (std::int64_t c = 0; k > 1 && c < k; ++c)
        norm = norm + scores[t][order[t][c].item<std::int64_t>()];
      auto& row = output[static_cast<std::size_t>(t)];
      row = row + scores[t][e] / norm * experts(e, x[t].unsqueeze(0)).squeeze(0);
    }
  }
  return x.size(0) == 0 ? x * 1.0 : at::stack(output);
}

}  // namespace thinwire::moe::testing
