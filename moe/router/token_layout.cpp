#include "thinwire/moe/router/token_layout.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "thinwire/common/error.h"

namespace thinwire::moe {

std::int64_t expert_capacity(std::int64_t tokens, std::int64_t top_k, std::int64_t experts,
                             double factor) {
  check(std::isfinite(factor) && factor >= 0, "a capacity factor must not be negative, got ",
        factor);
  if (factor == 0) return tokens;
  const double rows =
      static_cast<double>(tokens) * static_cast<double>(top_k) / static_cast<double>(experts);
  return std::min(tokens, static_cast<std::int64_t>(std::ceil(rows * factor)));
}

TokenLayout make_token_layout(const Pairs& pairs, const at::Tensor& weight, std::int64_t tokens,
                              std::int64_t experts, std::int64_t capacity, DropPolicy policy) {
  std::vector<std::vector<std::int32_t>> of_expert(static_cast<std::size_t>(experts));
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    check(pairs.token[i] >= 0 && pairs.token[i] < tokens, "the router chose token ", pairs.token[i],
          " of ", tokens);
    check(pairs.expert[i] >= 0 && pairs.expert[i] < experts, "the router chose expert ",
          pairs.expert[i], " of ", experts);
    of_expert[static_cast<std::size_t>(pairs.expert[i])].push_back(static_cast<std::int32_t>(i));
  }

  std::vector<double> priority(pairs.size(), 0.0);
  if (policy == DropPolicy::kProbability) {
    const at::Tensor values = weight.detach().to(at::kCPU, at::kDouble).contiguous();
    const double* data = values.const_data_ptr<double>();
    // A NaN weight has the lowest priority.
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      priority[i] = std::isnan(data[i]) ? -HUGE_VAL : data[i];
    }
  }
  const auto before = [&](std::int32_t a_pair, std::int32_t b_pair) {
    const auto a = static_cast<std::size_t>(a_pair);
    const auto b = static_cast<std::size_t>(b_pair);
    if (priority[a] != priority[b]) return priority[a] > priority[b];
    if (pairs.choice[a] != pairs.choice[b]) return pairs.choice[a] < pairs.choice[b];
    return std::pair(pairs.token[a], a) < std::pair(pairs.token[b], b);
  };

  TokenLayout layout;
  layout.tokens = tokens;
  layout.expert_begin.push_back(0);
  for (auto& chosen : of_expert) {
    if (static_cast<std::int64_t>(chosen.size()) > capacity) {
      std::sort(chosen.begin(), chosen.end(), before);
      layout.dropped += static_cast<std::int64_t>(chosen.size()) - capacity;
      chosen.resize(static_cast<std::size_t>(capacity));
    }
    std::sort(chosen.begin(), chosen.end(), [&](std::int32_t a, std::int32_t b) {
      return std::pair(pairs.token[static_cast<std::size_t>(a)], a) <
             std::pair(pairs.token[static_cast<std::size_t>(b)], b);
    });
    for (const std::int32_t pair : chosen) {
      layout.token.push_back(pairs.token[static_cast<std::size_t>(pair)]);
      layout.pair.push_back(pair);
    }
    layout.expert_begin.push_back(layout.rows());
  }
  return layout;
}

}  // namespace thinwire::moe
