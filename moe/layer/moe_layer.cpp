#include "thinwire/moe/layer/moe_layer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/moe/router/losses.h"

namespace thinwire::moe {
namespace {

std::shared_ptr<ExpertGroup> make_experts(const MoEOptions& options,
                                          const ExpertPlacement& placement, int rank) {
  const std::int64_t first = placement.first(rank);
  const std::int64_t count = placement.count(rank);
  if (options.factory) return std::make_shared<CustomExperts>(first, count, options.factory);
  return std::make_shared<GroupedFfn>(first, count,
                                      FfnOptions{options.router.dim, options.hidden,
                                                 options.activation, options.bias, options.seed});
}

}  // namespace

std::string agreement_of(const MoEOptions& options) {
  constexpr const char* kActivationNames[] = {"relu", "gelu", "silu", "swiglu"};
  const RouterOptions& router = options.router;
  return concat(
      "gate ", name_of(router.gate), "\ntop_k ", router.top_k, "\nscore ",
      router.score == Score::kSoftmax ? "softmax" : "sigmoid", "\nnormalize ",
      router.normalize ? "on" : "off", "\nweight factor ", number_text(router.weight_factor),
      "\nrouter capacity ", number_text(router.capacity_factor), "\nbias step ",
      number_text(router.bias_step), "\nhidden ", options.hidden, "\nactivation ",
      kActivationNames[static_cast<std::size_t>(options.activation)], "\nbias ",
      options.bias ? "on" : "off", "\nshared hidden ", options.shared_hidden, "\ncapacity ",
      options.capacity_factor, "\ndrop ",
      options.drop == DropPolicy::kPosition ? "position" : "probability", "\nexpert gradient ",
      options.expert_gradient == ExpertGradient::kMean ? "mean" : "sum", "\ndedup ",
      spec_of(options.dedup));
}

// What a rank knows before it talks to the others.
struct MoELayer::Prepared {
  double gate_seconds = 0;
  at::Tensor tokens;  // [T, d]
  Routing routing;
  TokenLayout layout;
  MergedRows merged;
  at::Tensor weight;  // [rows]
};

MoELayer::MoELayer(const MoEOptions& options, c10::intrusive_ptr<c10d::ProcessGroup> group)
    : torch::nn::Module("MoELayer"),
      options_(options),
      dedup_(options.dedup, options.router.dim, options.layer, options.seed) {
  options_.router.seed = options.seed;
  router_ = register_module("router", std::make_shared<Router>(options_.router));
  exchange_ = TokenDispatcher::make(std::move(group), {.dim = options.router.dim,
                                                       .experts = options.router.experts,
                                                       .rows = options.rows,
                                                       .chunks = options.chunks,
                                                       .share_rows = options.share_rows,
                                                       .layer = options.layer,
                                                       .seed = options.seed,
                                                       .agreement = agreement_of(options_)});
  experts_ =
      register_module("experts", make_experts(options_, exchange_->placement(), exchange_->rank()));
  if (options.shared_hidden > 0) {
    // A number that no routed expert has, for the initial weights.
    shared_ = register_module(
        "shared",
        std::make_shared<GroupedFfn>(options.router.experts, 1,
                                     FfnOptions{options.router.dim, options.shared_hidden,
                                                options.activation, options.bias, options.seed}));
  }
  load_.assign(static_cast<std::size_t>(options.router.experts), 0);
}

MoELayer::Prepared MoELayer::prepare(const at::Tensor& tokens, const at::Tensor& padding) {
  const std::int64_t dim = options_.router.dim;
  check(tokens.defined() && tokens.dim() >= 1 && tokens.size(-1) == dim, "tokens of shape [..., ",
        dim, "] expected, got ", tokens.defined() ? concat(tokens.sizes()) : "none");
  check(at::isFloatingType(tokens.scalar_type()), "tokens of a floating type expected, got ",
        toString(tokens.scalar_type()));
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
    bytes_per_row += exchange_->codec(static_cast<Leg>(leg)).row_bytes(dim, tokens.scalar_type());
  }
  prepared.merged = dedup_.merge(prepared.tokens, prepared.layout, is_training(), bytes_per_row);
  at::Tensor kept = at::empty({prepared.layout.rows()}, at::kLong);
  std::copy(prepared.layout.pair.begin(), prepared.layout.pair.end(),
            kept.data_ptr<std::int64_t>());
  prepared.weight = prepared.routing.weight.index_select(0, kept.to(tokens.device()));
  return prepared;
}

at::Tensor MoELayer::run_experts(const RowRoutes& plan, const at::Tensor& rows,
                                 const std::vector<std::int64_t>& counts) {
  // Note [Expert gradient scale]
  // Scaling the gradient by s behind the experts and by 1/s in front of them scales the gradients
  // of their parameters by s and leaves those of the tokens alone, whatever the experts are.
  const double scale =
      options_.expert_gradient == ExpertGradient::kMean ? 1.0 / exchange_->ranks() : 1.0;
  at::Tensor result;
  try {
    result = experts_->forward(scale_gradient(rows, 1.0 / scale), counts);
  } catch (...) {
    // The others wait in combine for this rank; they shall learn why it does not come.
    if (exchange_->ranks() == 1) throw;
    comm::raise_collective_failure(*exchange_->group(), "the experts", plan.sequence,
                                   std::current_exception());
  }
  return scale_gradient(result, scale);
}

MoEOutput MoELayer::forward(const at::Tensor& tokens, const at::Tensor& padding) {
  Prepared prepared;
  RouteRequest request;
  try {
    prepared = prepare(tokens, padding);
    request.expert_rows = prepared.merged.expert_rows;
    if (exchange_->shares_rows()) request.row_keys = prepared.merged.keys;
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
  const DispatchSummary before = exchange_->use();
  const auto start = Clock::now();
  const RowRoutesPtr plan = exchange_->plan(request);
  dedup_.add_global_sums(plan->sums);

  MoEOutput result;
  const at::Tensor& rows = prepared.merged.rows;
  // What the codec loses of merged rows is part of their residual.
  const bool lossy = prepared.merged.counters.merged && exchange_->codec(Leg::kDispatch).active();
  plan->keep_dispatched = lossy;
  const at::Tensor returned = exchange_->through_experts(
      plan, rows, [&](const at::Tensor& arrived, const std::vector<std::int64_t>& counts) {
        const auto experts_start = Clock::now();
        at::Tensor computed = run_experts(*plan, arrived, counts);
        result.counters.expert_seconds += seconds_since(experts_start);
        return computed;
      });
  result.counters.exchange_seconds = seconds_since(start) - result.counters.expert_seconds;

  // The gradient of what was lost goes straight through.
  const at::Tensor sent =
      lossy ? rows + (exchange_->as_received(plan, rows.detach()) - rows.detach()) : rows;
  result.output = dedup_.expand(prepared.tokens, prepared.layout, prepared.merged, sent, returned,
                                prepared.weight);
  if (shared_ != nullptr) {
    result.output = result.output + shared_->forward(prepared.tokens, {prepared.tokens.size(0)});
  }
  result.output = result.output.view(tokens.sizes());
  add_losses(prepared.routing, result);

  result.counters.tokens = prepared.layout.tokens;
  result.counters.pairs = static_cast<std::int64_t>(prepared.routing.pairs.size());
  result.counters.dropped = prepared.layout.dropped;
  result.counters.rows = prepared.layout.rows();
  result.counters.rows_sent = plan->sent_rows;
  result.counters.global_expert_rows = plan->global_expert_rows;
  result.counters.dedup = prepared.merged.counters;
  result.counters.gate_seconds = prepared.gate_seconds;
  result.counters.wire = exchange_->use().wire - before.wire;
  if (is_training()) {
    for (std::size_t e = 0; e < load_.size(); ++e) load_[e] += plan->global_expert_rows[e];
  }
  count(before, request, *plan, prepared.layout, result.counters);
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
}

void MoELayer::update_expert_bias() {
  router_->update_bias(load_);
  std::fill(load_.begin(), load_.end(), 0);
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

std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>>
MoELayer::replicated_modules() const {
  std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>> modules = {
      {"router", router_}};
  if (shared_ != nullptr) modules.emplace_back("shared", shared_);
  return modules;
}

}  // namespace thinwire::moe
