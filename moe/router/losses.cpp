#include "thinwire/moe/router/losses.h"

#include <ATen/ATen.h>

namespace thinwire::moe {
namespace {

at::Tensor zero_of(const Routing& routing) {
  return routing.logits.sum() * 0;
}

// E · <share of pairs, mean probability>, over the pairs whose choice is at most `last_choice`.
at::Tensor balance(const Routing& routing, std::int64_t experts, std::int32_t last_choice) {
  std::vector<double> share(static_cast<std::size_t>(experts), 0.0);
  double pairs = 0;
  for (std::size_t i = 0; i < routing.pairs.size(); ++i) {
    if (routing.pairs.choice[i] > last_choice) continue;
    ++share[static_cast<std::size_t>(routing.pairs.expert[i])];
    ++pairs;
  }
  if (pairs == 0) return zero_of(routing);
  for (double& value : share) value *= static_cast<double>(experts) / pairs;
  const at::Tensor factor = at::tensor(share, at::kDouble).to(routing.probabilities.options());
  return (routing.probabilities.mean(0) * factor).sum();
}

}  // namespace

at::Tensor switch_balance_loss(const Routing& routing, std::int64_t experts) {
  return balance(routing, experts, INT32_MAX);
}

at::Tensor gshard_balance_loss(const Routing& routing, std::int64_t experts) {
  return balance(routing, experts, 0);
}

at::Tensor router_z_loss(const Routing& routing) {
  if (routing.logits.size(0) == 0) return zero_of(routing);
  return at::logsumexp(routing.logits, 1).square().mean();
}

at::Tensor importance_loss(const Routing& routing, std::int64_t experts) {
  if (routing.pairs.size() == 0) return zero_of(routing);
  const at::Tensor importance =
      at::zeros({experts}, routing.weight.options())
          .index_add(0, index_tensor(routing.pairs.expert, routing.weight.device()),
                     routing.weight);
  const at::Tensor mean = importance.mean();
  return (importance - mean).square().mean() / mean.square().clamp_min(1e-20);
}

}  // namespace thinwire::moe
