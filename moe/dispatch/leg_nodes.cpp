#include "thinwire/moe/dispatch/leg_nodes.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/custom_function.h>

#include "thinwire/common/error.h"
#include "thinwire/moe/dispatch/backward_watch.h"
#include "thinwire/moe/dispatch/token_dispatcher.h"

namespace thinwire::moe {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Note [Overlap]
// A leg of a chunk is two nodes of the graph: StartLeg codes rows and begins to send them,
// FinishLeg waits for those of the others. Between the two the experts compute other chunks. In the
// backward pass FinishLeg begins to send the gradient and StartLeg waits for it. The engine runs
// ready nodes last created first, so that the order of the exchanges is the same on all ranks in
// both directions.
//
// A leg permutes rows, so its derivative is the leg that undoes it, made of the same two nodes: the
// derivative can be derived again, and every ticket is answered once.
Leg reverse_of(Leg leg) {
  switch (leg) {
    case Leg::kDispatch:
      return Leg::kDispatchBackward;
    case Leg::kDispatchBackward:
      return Leg::kDispatch;
    case Leg::kCombine:
      return Leg::kCombineBackward;
    case Leg::kCombineBackward:
      return Leg::kCombine;
  }
  throw InternalError("unknown leg");
}

constexpr double kNoTicket = -1;

at::Tensor ticket_of(double number) {
  return at::full({1}, number, at::kDouble);
}

// Makes a node part of the graph even on a rank whose rows need no gradient: the backward exchange
// needs every rank.
at::Tensor anchor() {
  return at::empty({0}, at::kFloat).requires_grad_(at::GradMode::is_enabled());
}

// Which leg of which chunk a node is.
struct Step {
  RowRoutesPtr routes;
  std::int64_t chunk;
  Leg leg;

  void save(AutogradContext* ctx) const {
    ctx->saved_data["routes"] = c10::IValue::make_capsule(routes);
    ctx->saved_data["chunk"] = chunk;
    ctx->saved_data["leg"] = static_cast<std::int64_t>(leg);
  }
  static Step of(AutogradContext* ctx) {
    return {c10::static_intrusive_pointer_cast<RowRoutes>(ctx->saved_data["routes"].toCapsule()),
            ctx->saved_data["chunk"].toInt(), static_cast<Leg>(ctx->saved_data["leg"].toInt())};
  }
  RouteChunk& part() const { return routes->chunks[static_cast<std::size_t>(chunk)]; }
  // Nobody wants the gradient of the rows that were dispatched.
  bool ends_here() const { return leg == Leg::kDispatch && !routes->needs_input_gradient; }
  // A second derivative is asked for and there is none.
  bool is_derived_once() const { return at::GradMode::is_enabled() && routes->is_lossy(); }
  void watch() const {
    watch_backward(routes->dispatcher->group(), "the backward pass of the experts",
                   routes->sequence);
  }
};

// The gradient that left a lossy exchange. Codes are constant almost everywhere and their gradient
// is passed straight through, which says nothing of how it changes.
class DerivedOnce : public torch::autograd::Function<DerivedOnce> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gradient,
                            const at::Tensor& /*anchor*/, const Step& step) {
    step.save(ctx);
    return gradient.view_as(gradient);
  }
  static variable_list backward(AutogradContext* ctx, variable_list) {
    const Step step = Step::of(ctx);
    std::string codecs;
    for (int leg = 0; leg < kLegs; ++leg) {
      const RowCodec& codec = step.routes->codecs[static_cast<std::size_t>(leg)];
      if (codec.active()) codecs += concat(" ", name_of(static_cast<Leg>(leg)), "=", codec.spec());
    }
    step.watch();
    throw InvalidArgument(concat(
        "the gradient of a mixture of experts whose rows pass through a codec cannot be derived "
        "again (",
        codecs.substr(1), "); send rows as they are (rows=none) for gradient penalties"));
  }
};

class StartLeg : public torch::autograd::Function<StartLeg> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows,
                            const at::Tensor& /*anchor*/, const Step& step) {
    step.save(ctx);
    const auto chunk = static_cast<std::size_t>(step.chunk);
    return ticket_of(
        static_cast<double>(step.routes->dispatcher->start(*step.routes, chunk, step.leg, rows)));
  }
  static variable_list backward(AutogradContext* ctx, variable_list tickets) {
    const Step step = Step::of(ctx);
    if (step.ends_here()) return {{}, {}, {}};
    step.watch();
    const bool once = step.is_derived_once();
    at::Tensor gradient;
    {
      const at::AutoGradMode mode(at::GradMode::is_enabled() && !once);
      gradient = finish_leg(step.routes, step.chunk, reverse_of(step.leg), tickets[0]);
    }
    if (once) gradient = DerivedOnce::apply(gradient, anchor(), step);
    if (step.leg == Leg::kCombine) step.part().experts_gradient = Clock::now();
    return {gradient, {}, {}};
  }
};

class FinishLeg : public torch::autograd::Function<FinishLeg> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& ticket, const Step& step) {
    step.save(ctx);
    const auto number = static_cast<std::int64_t>(ticket.item<double>());
    return step.routes->dispatcher->finish(*step.routes, static_cast<std::size_t>(step.chunk),
                                           step.leg, number);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Step step = Step::of(ctx);
    step.watch();
    if (step.leg == Leg::kDispatch) {
      // Between the combine's gradient and this one the engine was in the experts.
      step.routes->dispatcher->add_expert_seconds(seconds_since(step.part().experts_gradient));
    }
    if (step.ends_here()) return {ticket_of(kNoTicket), {}};
    const at::AutoGradMode mode(at::GradMode::is_enabled() && !step.is_derived_once());
    return {start_leg(step.routes, step.chunk, reverse_of(step.leg), gradients[0]), {}};
  }
};

}  // namespace

at::Tensor start_leg(const RowRoutesPtr& routes, std::int64_t chunk, Leg leg,
                     const at::Tensor& rows) {
  return StartLeg::apply(rows, anchor(), Step{routes, chunk, leg});
}

at::Tensor finish_leg(const RowRoutesPtr& routes, std::int64_t chunk, Leg leg,
                      const at::Tensor& ticket) {
  return FinishLeg::apply(ticket, Step{routes, chunk, leg});
}

}  // namespace thinwire::moe
