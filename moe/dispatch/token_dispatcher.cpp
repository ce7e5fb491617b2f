#include "thinwire/moe/dispatch/token_dispatcher.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <xxhash.h>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/stopwatch.h"

namespace thinwire::moe {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOperations[kLegs] = {"dispatch of tokens to experts", "combine of tokens",
                                            "backward of combine", "backward of dispatch"};
// Keeps the random numbers of row codecs apart from those of gradient codecs ("MOE").
constexpr std::uint32_t kStage = 0x4D4F4500;

std::int64_t sum(const std::vector<std::int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

// Rows that this rank sends to, or gets from, each rank.
const std::vector<std::int64_t>& counts_of(const RouteChunk& chunk, Leg leg, bool incoming) {
  switch (leg) {
    case Leg::kDispatch:
      return incoming ? chunk.received : chunk.sent;
    case Leg::kDispatchBackward:
      return incoming ? chunk.sent : chunk.received;
    case Leg::kCombine:
      return incoming ? chunk.returned : chunk.computed;
    case Leg::kCombineBackward:
      return incoming ? chunk.computed : chunk.returned;
  }
  throw InternalError("unknown leg");
}

// Note [Overlap]
// A leg of a chunk is two nodes of the graph: Start codes rows and begins to send them, Finish
// waits for those of the others. Between the two the experts compute other chunks. In the backward
// pass Finish begins to send the gradient and Start waits for it. The engine runs ready nodes last
// created first, so that the order of the exchanges is the same on all ranks in both directions.
//
// `anchor` makes a node part of the graph even on a rank whose rows need no gradient: the backward
// exchange needs every rank.
struct Step {
  RowRoutesPtr plan;
  std::int64_t chunk;
  bool out;  // dispatch, else combine

  void save(AutogradContext* ctx) const {
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    ctx->saved_data["chunk"] = chunk;
    ctx->saved_data["out"] = out;
  }
  static Step of(AutogradContext* ctx) {
    return {c10::static_intrusive_pointer_cast<RowRoutes>(ctx->saved_data["plan"].toCapsule()),
            ctx->saved_data["chunk"].toInt(), ctx->saved_data["out"].toBool()};
  }
  RouteChunk& part() const { return plan->chunks[static_cast<std::size_t>(chunk)]; }
  void start(Leg leg, const at::Tensor& rows) const {
    plan->exchange->start(*plan, static_cast<std::size_t>(chunk), leg, rows);
  }
  at::Tensor finish(Leg leg) const {
    return plan->exchange->finish(*plan, static_cast<std::size_t>(chunk), leg);
  }
};

class Start : public torch::autograd::Function<Start> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows,
                            const at::Tensor& /*anchor*/, const Step& step) {
    step.save(ctx);
    step.start(step.out ? Leg::kDispatch : Leg::kCombine, rows);
    return at::empty({0}, at::kFloat);
  }
  static variable_list backward(AutogradContext* ctx, variable_list) {
    const Step step = Step::of(ctx);
    if (step.out && !step.plan->needs_input_gradient) return {{}, {}, {}};
    at::Tensor gradient = step.finish(step.out ? Leg::kDispatchBackward : Leg::kCombineBackward);
    if (!step.out) step.part().experts_gradient = Clock::now();
    return {gradient, {}, {}};
  }
};

class Finish : public torch::autograd::Function<Finish> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& /*ticket*/, const Step& step) {
    step.save(ctx);
    return step.finish(step.out ? Leg::kDispatch : Leg::kCombine);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Step step = Step::of(ctx);
    if (step.out) {
      // Between the combine's gradient and this one the engine was in the experts.
      step.plan->exchange->add_expert_seconds(seconds_since(step.part().experts_gradient));
    }
    if (!step.out || step.plan->needs_input_gradient) {
      step.start(step.out ? Leg::kDispatchBackward : Leg::kCombineBackward, gradients[0]);
    }
    return {at::zeros({0}, at::kFloat), {}};
  }
};

at::Tensor anchor() {
  return at::empty({0}, at::kFloat).requires_grad_(at::GradMode::is_enabled());
}

}  // namespace

std::shared_ptr<TokenDispatcher> TokenDispatcher::make(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                                       const DispatcherOptions& options) {
  return std::shared_ptr<TokenDispatcher>(new TokenDispatcher(std::move(group), options));
}

TokenDispatcher::TokenDispatcher(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                 const DispatcherOptions& options)
    : group_(std::move(group)),
      options_(options),
      placement_(options.experts, group_ == nullptr ? 1 : group_->getSize()) {
  check(options.dim >= 1, "rows need at least one element, got a width of ", options.dim);
  check(options.chunks >= 0, "rows travel in at least one chunk (0: chosen by size), got ",
        options.chunks);
  own_agreement_ = concat("layer ", options.layer, "\nwidth ", options.dim, "\nexperts ",
                          options.experts, "\nchunks ", options.chunks, "\nshared rows ",
                          options.share_rows ? "on" : "off", "\nseed ", options.seed);
  for (int i = 0; i < kLegs; ++i) {
    const auto leg = static_cast<Leg>(i);
    RowCodec& codec = codecs_[static_cast<std::size_t>(i)];
    codec = RowCodec(options.rows.of(leg));
    own_agreement_ += concat("\n", name_of(leg), " ", codec.spec());
    if (codec.spectral() == nullptr) continue;
    // The layers take turns too: making bases is work for their owner.
    const auto turn = static_cast<std::int64_t>(options.layer) * kLegs + i;
    bases_.push_back({leg,
                      *codec.spectral(),
                      static_cast<int>(turn % ranks()),
                      RowMoments(options.dim),
                      RowMoments(options.dim),
                      {}});
  }
  set_agreement(options.agreement);
}

void TokenDispatcher::set_agreement(const std::string& text) {
  options_.agreement = concat(own_agreement_, "\n", text);
  agreement_hash_ = XXH3_64bits(options_.agreement.data(), options_.agreement.size());
}

RandomKey TokenDispatcher::key(const RowRoutes& plan, std::size_t chunk, Leg leg, int from,
                               int to) const {
  const auto segment = (static_cast<std::int64_t>(chunk) * ranks() + from) * ranks() + to;
  return {.seed = options_.seed,
          .step = plan.sequence,
          .layer = options_.layer,
          .rank = static_cast<std::uint32_t>(segment),
          .stage = kStage + static_cast<std::uint32_t>(leg)};
}

std::vector<RowSegment> TokenDispatcher::segments(const RowRoutes& plan, std::size_t chunk, Leg leg,
                                                  bool incoming) const {
  std::vector<RowSegment> all;
  const auto& counts = counts_of(plan.chunks[chunk], leg, incoming);
  for (int peer = 0; peer < ranks(); ++peer) {
    const int from = incoming ? peer : rank();
    const int to = incoming ? rank() : peer;
    all.push_back({counts[static_cast<std::size_t>(peer)], key(plan, chunk, leg, from, to)});
  }
  return all;
}

at::Tensor TokenDispatcher::decode(const RowRoutes& plan, std::size_t chunk, Leg leg,
                                   const at::Tensor& bytes, at::ScalarType dtype,
                                   bool incoming) const {
  return plan.codecs[static_cast<std::size_t>(leg)].decode(bytes, options_.dim, dtype,
                                                           segments(plan, chunk, leg, incoming));
}

void TokenDispatcher::start(RowRoutes& plan, std::size_t chunk, Leg leg, const at::Tensor& rows) {
  const auto leg_index = static_cast<std::size_t>(leg);
  auto send = counts_of(plan.chunks[chunk], leg, false);
  auto receive = counts_of(plan.chunks[chunk], leg, true);
  check(rows.dim() == 2 && rows.size(0) == sum(send) && rows.size(1) == options_.dim,
        "rows of shape [", sum(send), ", ", options_.dim, "] expected for the ",
        kOperations[leg_index], ", got ", rows.sizes());
  const auto begin = Clock::now();
  const RowCodec& codec = plan.codecs[leg_index];
  if (plan.training && codec.spectral() != nullptr) {
    const std::lock_guard lock(mutex_);
    for (BasisLeg& basis : bases_) {
      if (basis.leg == leg) basis.fresh.add(rows.detach());
    }
  }
  auto& pending = plan.chunks[chunk].pending[leg_index];
  pending.dtype = rows.scalar_type();
  pending.outgoing = codec.encode(rows.detach(), segments(plan, chunk, leg, false));
  const double code_seconds = seconds_since(begin);
  std::int64_t bytes = 0;
  if (ranks() == 1) {
    pending.incoming = pending.outgoing;
  } else {
    const std::int64_t row_bytes = codec.row_bytes(options_.dim, rows.scalar_type());
    pending.incoming = at::empty({sum(receive), row_bytes}, pending.outgoing.options());
    bytes = (sum(send) - send[static_cast<std::size_t>(rank())]) * row_bytes;
    try {
      pending.work = group_->alltoall_base(pending.incoming, pending.outgoing, receive, send);
    } catch (...) {
      comm::raise_collective_failure(*group_, kOperations[leg_index], plan.sequence,
                                     std::current_exception());
    }
  }
  if (leg == Leg::kDispatch && plan.keep_dispatched) {
    plan.chunks[chunk].dispatched = pending.outgoing;
  }
  const std::lock_guard lock(mutex_);
  use_.wire.rows[leg_index] += bytes;
  use_.code_seconds += code_seconds;
}

at::Tensor TokenDispatcher::finish(RowRoutes& plan, std::size_t chunk, Leg leg) {
  const auto leg_index = static_cast<std::size_t>(leg);
  RouteChunk::Pending pending = std::exchange(plan.chunks[chunk].pending[leg_index], {});
  THINWIRE_ASSERT(pending.incoming.defined());
  const auto begin = Clock::now();
  if (pending.work != nullptr) {
    comm::wait(*group_, pending.work, kOperations[leg_index], plan.sequence);
  }
  const double wait_seconds = seconds_since(begin);
  const auto decode_begin = Clock::now();
  at::Tensor rows = decode(plan, chunk, leg, pending.incoming, pending.dtype, true);
  const std::lock_guard lock(mutex_);
  use_.wait_seconds += wait_seconds;
  use_.code_seconds += seconds_since(decode_begin);
  return rows;
}

void TokenDispatcher::add_expert_seconds(double seconds) {
  const std::lock_guard lock(mutex_);
  use_.expert_seconds += seconds;
}

at::Tensor TokenDispatcher::through_experts(const RowRoutesPtr& plan, const at::Tensor& rows,
                                            const Experts& experts) {
  const auto count = static_cast<std::int64_t>(plan->chunks.size());
  const auto dispatch = [&](std::int64_t chunk) {
    const RowMapPtr& outgoing = plan->chunks[static_cast<std::size_t>(chunk)].outgoing;
    return Start::apply(outgoing == nullptr ? rows : map_rows(rows, outgoing), anchor(),
                        Step{plan, chunk, true});
  };
  std::vector<at::Tensor> results;
  at::Tensor ticket = dispatch(0);
  for (std::int64_t chunk = 0; chunk < count; ++chunk) {
    const RouteChunk& part = plan->chunks[static_cast<std::size_t>(chunk)];
    const at::Tensor arrived = Finish::apply(ticket, Step{plan, chunk, true});
    if (chunk + 1 < count) ticket = dispatch(chunk + 1);
    const at::Tensor computed = experts(map_rows(arrived, part.by_expert), part.expert_rows);
    results.push_back(
        Start::apply(map_rows(computed, part.by_source), anchor(), Step{plan, chunk, false}));
  }
  for (std::int64_t chunk = 0; chunk < count; ++chunk) {
    at::Tensor& result = results[static_cast<std::size_t>(chunk)];
    result = Finish::apply(result, Step{plan, chunk, false});
  }
  const at::Tensor all = count == 1 ? results.front() : at::cat(results);
  return plan->order == nullptr ? all : map_rows(all, plan->order);
}

at::Tensor TokenDispatcher::as_received(const RowRoutesPtr& plan, const at::Tensor& rows) const {
  if (!plan->codecs[static_cast<std::size_t>(Leg::kDispatch)].active()) return rows;
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  for (std::size_t chunk = 0; chunk < plan->chunks.size(); ++chunk) {
    const at::Tensor& bytes = plan->chunks[chunk].dispatched;
    THINWIRE_ASSERT(bytes.defined());
    parts.push_back(decode(*plan, chunk, Leg::kDispatch, bytes, rows.scalar_type(), false));
  }
  const at::Tensor all = at::cat(parts);
  return plan->sent_of == nullptr ? all : map_rows(all, plan->sent_of);
}

DispatchSummary TokenDispatcher::use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

void TokenDispatcher::add_wire(std::int64_t LegBytes::*what, std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  use_.wire.*what += bytes;
}

void TokenDispatcher::agree_on_bases(at::Device device, std::uint64_t sequence) {
  std::vector<BasisLeg*> due;
  for (BasisLeg& leg : bases_) {
    if (leg.is_due(training_plans_)) due.push_back(&leg);
  }
  if (due.empty()) return;
  std::int64_t bytes = 0;
  {
    const std::lock_guard lock(mutex_);
    bytes = moe::agree_on_bases(group_.get(), due, options_.dim, device, sequence);
  }
  add_wire(&LegBytes::bases, bytes);
  for (const BasisLeg* leg : due) {
    RowCodec& codec = codecs_[static_cast<std::size_t>(leg->leg)];
    codec = codec.with_basis(leg->usable());
  }
}

NamedTensors TokenDispatcher::state() const {
  NamedTensors all = {
      {"rows.counters", at::tensor({static_cast<std::int64_t>(sequence_), training_plans_})}};
  for (const BasisLeg& leg : bases_) {
    const std::string name = concat("rows.", name_of(leg.leg), ".");
    if (leg.message.defined()) all.emplace_back(name + "basis", leg.message);
    if (leg.owner == rank()) all.emplace_back(name + "moments", leg.running.sums());
    all.emplace_back(concat(name, "fresh.", rank()), leg.fresh.sums());
  }
  return all;
}

void TokenDispatcher::load_state(const NamedTensors& state) {
  const auto find = [&](const std::string& name) -> const at::Tensor* {
    for (const auto& [known, tensor] : state) {
      if (known == name) return &tensor;
    }
    return nullptr;
  };
  if (const auto* counters = find("rows.counters")) {
    check(counters->numel() == 2, "'rows.counters' has ", counters->numel(),
          " elements in the state, 2 expected");
    sequence_ = static_cast<std::uint64_t>((*counters)[0].item<std::int64_t>());
    training_plans_ = (*counters)[1].item<std::int64_t>();
  }
  for (BasisLeg& leg : bases_) {
    const std::string name = concat("rows.", name_of(leg.leg), ".");
    const auto* message = find(name + "basis");
    // Another number of bits needs another basis; the moments are good for it.
    leg.message = at::Tensor();
    leg.basis = nullptr;
    if (message != nullptr && is_made_for(*message, leg.options, options_.dim)) {
      leg.take(*message, options_.dim);
    }
    RowCodec& codec = codecs_[static_cast<std::size_t>(leg.leg)];
    codec = codec.with_basis(leg.usable());
    const auto take = [&](const std::string& key, const at::Tensor& sums, RowMoments& moments) {
      check(sums.sizes() == moments.sums().sizes(), "'", key, "' has shape ", sums.sizes(),
            " in the state, ", moments.sums().sizes(), " in the layer");
      moments.sums().add_(sums);
    };
    leg.running.clear();
    leg.fresh.clear();
    const auto* moments = find(name + "moments");
    if (moments != nullptr && leg.owner == rank()) take(name + "moments", *moments, leg.running);
    // With another number of ranks their sum stays what it was.
    for (const auto& [key, sums] : state) {
      if (!key.starts_with(name + "fresh.")) continue;
      const int source = std::atoi(key.c_str() + name.size() + std::strlen("fresh."));
      if (source % ranks() == rank()) take(key, sums, leg.fresh);
    }
  }
}

}  // namespace thinwire::moe
