#include "thinwire/moe/layer/moe_layer.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include <algorithm>

#include "thinwire/common/error.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/moe/router/losses.h"

namespace thinwire::moe {
// What a rank knows before it talks to the others.
struct MoELayer::Prepared {
  double gate_seconds = 0;
  at::Tensor tokens;  // [T, d]
  Routing routing;
  TokenLayout layout;
  MergedRows merged;
  at::Tensor weight;  // [rows]
};

void MoELayer::check_dtype(const at::Tensor& tokens) const {
  // Autocast converts what it is given.
  if (at::autocast::is_autocast_enabled(tokens.device().type())) return;
  for (const std::shared_ptr<ExpertGroup>& group :
       {options_.factory ? nullptr : experts_, std::shared_ptr<ExpertGroup>(shared_)}) {
    if (group == nullptr) continue;
    const at::ScalarType type = group->parameters()[0].scalar_type();
    check(tokens.scalar_type() == type, "tokens of ", toString(tokens.scalar_type()),
          " for experts of ", toString(type),
          "; convert the tokens, the layer (to()), or run it under autocast");
  }
}

MoELayer::Prepared MoELayer::prepare(const at::Tensor& tokens, const at::Tensor& padding) {
  const std::int64_t dim = options_.router.dim;
  check(tokens.defined() && tokens.dim() >= 1 && tokens.size(-1) == dim, "tokens of shape [..., ",
        dim, "] expected, got ", tokens.defined() ? concat(tokens.sizes()) : "none");
  check_in_host_memory(tokens.device());
  check(at::isFloatingType(tokens.scalar_type()), "tokens of a floating type expected, got ",
        toString(tokens.scalar_type()));
  check_dtype(tokens);
  Prepared prepared;
  const auto gate_start = Clock::now();
  prepared.tokens = tokens.reshape({-1, dim});
  prepared.routing =
      router_->forward(prepared.tokens, padding.defined() ? padding.reshape({-1}) : padding);
  const std::int64_t count = prepared.tokens.size(0);
  // Expert choice has its own capacity.
  const double factor = options_.router.gate == Gate::kExpertChoice ? 0 : options_.capacity_factor;
  prepared.layout = make_token_layout(
      prepared.routing.pairs, prepared.routing.weight, count, options_.router.experts,
      expert_capacity(count, options_.router.top_k, options_.router.experts, factor),
      options_.drop);
  prepared.gate_seconds = seconds_since(gate_start);
  std::int64_t bytes_per_row = 0;
  for (int leg = 0; leg < kLegs; ++leg) {
    if (leg >= 2 && !at::GradMode::is_enabled()) break;  // no backward pass
    bytes_per_row += dispatcher_->codec(static_cast<Leg>(leg)).row_bytes(dim, tokens.scalar_type());
  }
  prepared.merged = dedup_.merge(prepared.tokens, prepared.layout, is_training(), bytes_per_row);
  prepared.weight =
      prepared.routing.weight.index_select(0, index_tensor(prepared.layout.pair, tokens.device()));
  return prepared;
}

at::Tensor MoELayer::run_experts(const RowRoutes& routes, const at::Tensor& rows,
                                 const std::vector<std::int64_t>& counts) {
  // Note [Expert gradient scale]
  // Scaling the gradient by s behind the experts and by 1/s in front of them scales the gradients
  // of their parameters by s and leaves those of the tokens alone, whatever the experts are.
  //
  // The same holds for derivatives of the tokens' gradient g = 1/s · Jᵀ(s · u): seen as Jᵀu by
  // whoever derives it, it gives v to the derivative of Jᵀ(s · u) with respect to the parameters,
  // s times what it would be unscaled, and to the tokens the same through the 1/s in front. That is
  // why a factor is applied when a gradient is made, and not again when the gradient is derived.
  const double scale =
      options_.expert_gradient == ExpertGradient::kMean ? 1.0 / dispatcher_->ranks() : 1.0;
  // The others wait in combine for this rank; they shall learn why it does not come.
  return dispatcher_->guard("the experts", routes.sequence, [&] {
    const at::Tensor result = experts_->forward(scale_gradient(rows, 1.0 / scale), counts);
    // Of the type in which all ranks expect it, whatever autocast made of it here.
    return scale_gradient(result.to(rows.scalar_type()), scale);
  });
}

MoEOutput MoELayer::forward(const at::Tensor& tokens, const at::Tensor& padding) {
  Prepared prepared;
  RouteRequest request;
  try {
    prepared = prepare(tokens, padding);
    request.expert_rows = prepared.merged.expert_rows;
    if (dispatcher_->shares_rows()) request.row_keys = prepared.merged.keys;
    request.dtype = tokens.scalar_type();
    request.device = tokens.device();
    request.training = at::GradMode::is_enabled();
    request.needs_input_gradient = prepared.merged.rows.requires_grad();
    request.sums = dedup_.take_sums();
  } catch (const c10::Error& error) {
    request.failure = error.what_without_backtrace();
  } catch (const std::exception& error) {
    request.failure = error.what();
  }
  const LegBytes wire = dispatcher_->wire();
  const MoESeconds seconds = dispatcher_->seconds();
  const RowRoutesPtr routes = dispatcher_->route(request);
  return dispatcher_->guard("a mixture of experts", routes->sequence, [&] {
    MoEOutput result = compute(tokens, prepared, routes);
    MoECounters& counters = result.counters;
    counters.wire = dispatcher_->wire() - wire;
    counters.seconds += dispatcher_->seconds() - seconds;
    if (is_training()) {
      for (std::size_t e = 0; e < load_.size(); ++e) load_[e] += routes->expert_rows[e];
    }
    count(request, *routes, prepared.layout, counters);
    return result;
  });
}

MoEOutput MoELayer::compute(const at::Tensor& tokens, Prepared& prepared,
                            const RowRoutesPtr& routes) {
  dedup_.add_global_sums(routes->sums);
  MoEOutput result;
  const at::Tensor& rows = prepared.merged.rows;
  // What the codec loses of merged rows is part of their residual.
  const bool lossy = prepared.merged.counters.merged && dispatcher_->codec(Leg::kDispatch).active();
  routes->keep_dispatched = lossy;
  const at::Tensor returned = dispatcher_->through_experts(
      routes, rows, [&](const at::Tensor& arrived, const std::vector<std::int64_t>& counts) {
        const auto start = Clock::now();
        at::Tensor computed = run_experts(*routes, arrived, counts);
        result.counters.seconds.experts += seconds_since(start);
        return computed;
      });

  // The gradient of what was lost goes straight through.
  const at::Tensor sent =
      lossy ? rows + (dispatcher_->as_received(routes, rows.detach()) - rows.detach()) : rows;
  result.output = dedup_.expand(prepared.tokens, prepared.layout, prepared.merged, sent, returned,
                                prepared.weight);
  if (shared_ != nullptr) {
    const at::Tensor shared = shared_->forward(prepared.tokens, {prepared.tokens.size(0)});
    result.output = result.output + shared.to(tokens.scalar_type());
  }
  result.output = result.output.view(tokens.sizes());
  add_losses(prepared.routing, result);

  result.counters.tokens = prepared.layout.tokens;
  result.counters.pairs = static_cast<std::int64_t>(prepared.routing.pairs.size());
  result.counters.dropped = prepared.layout.dropped;
  result.counters.rows = prepared.layout.rows();
  result.counters.rows_sent = routes->sent_rows;
  result.counters.expert_rows = routes->expert_rows;
  result.counters.arrived_rows = routes->arrived_rows();
  result.counters.dedup = prepared.merged.counters;
  result.counters.seconds.gate = prepared.gate_seconds;
  result.counters.seconds.hash = prepared.merged.counters.hash_seconds;
  return result;
}

void MoELayer::add_losses(const Routing& routing, MoEOutput& result) const {
  const std::int64_t experts = options_.router.experts;
  const auto add = [&](double factor, const at::Tensor& value) {
    const at::Tensor weighted = value * factor;
    result.loss = result.loss.defined() ? result.loss + weighted : weighted;
    return value;
  };
  if (options_.balance_factor != 0) {
    result.balance_loss = add(options_.balance_factor, options_.balance == BalanceLoss::kSwitch
                                                           ? switch_balance_loss(routing, experts)
                                                           : gshard_balance_loss(routing, experts));
  }
  if (options_.z_factor != 0) result.z_loss = add(options_.z_factor, router_z_loss(routing));
  if (options_.importance_factor != 0) {
    result.importance_loss = add(options_.importance_factor, importance_loss(routing, experts));
  }
  if (!result.loss.defined()) result.loss = at::zeros({}, routing.logits.options());
}

std::vector<at::Tensor> MoELayer::expert_parameters() const {
  return experts_->parameters();
}

std::vector<at::Tensor> MoELayer::replicated_parameters() const {
  std::vector<at::Tensor> parameters = router_->parameters();
  if (shared_ != nullptr) {
    for (const auto& parameter : shared_->parameters()) parameters.push_back(parameter);
  }
  return parameters;
}

}  // namespace thinwire::moe
