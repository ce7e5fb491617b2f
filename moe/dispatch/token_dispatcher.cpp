#include "thinwire/moe/dispatch/token_dispatcher.h"

#include <numeric>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "thinwire/comm/failure/backward_failure.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/moe/dispatch/route_chunks.h"

namespace thinwire::moe {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kLegOperations[kLegs] = {"dispatch of tokens to experts", "combine of tokens",
                                               "backward of combine", "backward of dispatch"};
// Keeps the random numbers of row codecs apart from those of gradient codecs ("MOE").
constexpr std::uint32_t kStage = 0x4D4F4500;

// Bytes of a mask behind a row: whole elements where rows are read where they arrived.
std::int64_t padded(std::int64_t mask_bytes, const RowCodec& codec, at::ScalarType dtype) {
  const auto unit = codec.active() ? 1 : static_cast<std::int64_t>(c10::elementSize(dtype));
  return (mask_bytes + unit - 1) / unit * unit;
}

// rows: [n, bytes], masks: [n, mask bytes], both uint8 -> [n, bytes + room].
at::Tensor with_masks(const at::Tensor& rows, const at::Tensor& masks, std::int64_t room) {
  return at::cat({rows, at::constant_pad_nd(masks, {0, room - masks.size(1)}).to(rows.device())},
                 1);
}

// Where the rows of messages lie among the rows of bytes that these take, as a tensor of int64.
at::Tensor places_in_messages(const RowCodec& codec, std::int64_t dim,
                              const std::vector<std::int64_t>& counts) {
  std::vector<std::int32_t> places;
  std::int64_t begin = 0;
  for (const std::int64_t count : counts) {
    for (std::int64_t i = 0; i < count; ++i) places.push_back(static_cast<std::int32_t>(begin + i));
    begin += codec.message_rows(count, dim);
  }
  return index_tensor(places, at::kCPU);
}

std::int64_t sum(const std::vector<std::int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

at::Tensor permuted(const at::Tensor& rows, const RowMapPtr& map) {
  return map == nullptr ? rows : map_rows(rows, map);
}

// Rows that this rank sends to, or gets from, each rank.
const std::vector<std::int64_t>& counts_of(const RouteChunk& chunk, Leg leg, bool incoming) {
  switch (leg) {
    case Leg::kDispatch:
      return incoming ? chunk.received_rows : chunk.sent_rows;
    case Leg::kDispatchBackward:
      return incoming ? chunk.sent_rows : chunk.received_rows;
    case Leg::kCombine:
      return incoming ? chunk.returned_rows : chunk.computed_rows;
    case Leg::kCombineBackward:
      return incoming ? chunk.computed_rows : chunk.returned_rows;
  }
  throw InternalError("unknown leg");
}

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
    comm::tell_backward_failure(routes->dispatcher->group(), "the backward pass of the experts",
                                routes->sequence);
  }
};

// start() and finish() as nodes of the autograd graph. The ticket that leads from one to the other
// is a tensor of one number, so that the graph has an edge there.
at::Tensor start_leg(const RowRoutesPtr& routes, std::int64_t chunk, Leg leg,
                     const at::Tensor& rows);
at::Tensor finish_leg(const RowRoutesPtr& routes, std::int64_t chunk, Leg leg,
                      const at::Tensor& ticket);

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

at::Tensor start_leg(const RowRoutesPtr& routes, std::int64_t chunk, Leg leg,
                     const at::Tensor& rows) {
  return StartLeg::apply(rows, anchor(), Step{routes, chunk, leg});
}

at::Tensor finish_leg(const RowRoutesPtr& routes, std::int64_t chunk, Leg leg,
                      const at::Tensor& ticket) {
  return FinishLeg::apply(ticket, Step{routes, chunk, leg});
}

}  // namespace

RandomKey TokenDispatcher::key(const RowRoutes& routes, std::size_t chunk, Leg leg, int from,
                               int to) const {
  const auto segment = (static_cast<std::int64_t>(chunk) * ranks() + from) * ranks() + to;
  return {.seed = options_.seed,
          .step = routes.sequence,
          .layer = options_.layer,
          .rank = static_cast<std::uint32_t>(segment),
          .stage = kStage + static_cast<std::uint32_t>(leg)};
}

std::vector<RowSegment> TokenDispatcher::segments(const RowRoutes& routes, std::size_t chunk,
                                                  Leg leg, bool incoming) const {
  std::vector<RowSegment> all;
  const auto& counts = counts_of(routes.chunks[chunk], leg, incoming);
  for (int peer = 0; peer < ranks(); ++peer) {
    const int from = incoming ? peer : rank();
    const int to = incoming ? rank() : peer;
    all.push_back({counts[static_cast<std::size_t>(peer)], key(routes, chunk, leg, from, to)});
  }
  return all;
}

at::Tensor TokenDispatcher::decode(const RowRoutes& routes, std::size_t chunk, Leg leg,
                                   const at::Tensor& bytes, at::ScalarType dtype,
                                   bool incoming) const {
  return routes.codecs[static_cast<std::size_t>(leg)].decode(
      bytes, options_.dim, dtype, segments(routes, chunk, leg, incoming));
}

std::int64_t TokenDispatcher::start(RowRoutes& routes, std::size_t chunk, Leg leg,
                                    const at::Tensor& rows) {
  const auto leg_index = static_cast<std::size_t>(leg);
  RouteChunk& part = routes.chunks[chunk];
  auto send = counts_of(part, leg, false);
  auto receive = counts_of(part, leg, true);
  check(rows.dim() == 2 && rows.size(0) == sum(send) && rows.size(1) == options_.dim,
        "rows of shape [", sum(send), ", ", options_.dim, "] expected for the ",
        kLegOperations[leg_index], ", got ", rows.sizes());
  const auto begin = Clock::now();
  const RowCodec& codec = routes.codecs[leg_index];
  if (routes.training && codec.spectral() != nullptr) {
    const std::lock_guard lock(mutex_);
    for (BasisLeg& basis : bases_) {
      if (basis.leg == leg) basis.fresh.add(rows.detach());
    }
  }
  RowRoutes::Pending pending;
  pending.dtype = rows.scalar_type();
  pending.outgoing = codec.encode(rows.detach(), segments(routes, chunk, leg, false));
  const std::int64_t row_bytes = pending.outgoing.size(1);
  pending.with_masks = leg == Leg::kDispatch && !part.has_arrived && part.masks.defined();
  if (pending.with_masks) {
    at::Tensor masks = part.masks;
    if (pending.outgoing.size(0) > masks.size(0)) {
      masks = at::zeros({pending.outgoing.size(0), masks.size(1)}, masks.options())
                  .index_copy_(0, places_in_messages(codec, options_.dim, send), masks);
    }
    pending.outgoing =
        with_masks(pending.outgoing, masks, padded(part.masks.size(1), codec, pending.dtype));
  }
  for (auto* counts : {&send, &receive}) {
    for (std::int64_t& count : *counts) count = codec.message_rows(count, options_.dim);
  }
  add_seconds(&MoESeconds::code, seconds_since(begin));
  if (leg == Leg::kDispatch && routes.keep_dispatched) part.dispatched = pending.outgoing;
  if (ranks() == 1) {
    pending.incoming = pending.outgoing;
  } else {
    const std::int64_t width = pending.outgoing.size(1);
    pending.incoming = at::empty({sum(receive), width}, pending.outgoing.options());
    guard(kLegOperations[leg_index], routes.sequence, [&] {
      pending.work = group_->alltoall_base(pending.incoming, pending.outgoing, receive, send);
    });
    const std::int64_t leaving = sum(send) - send[static_cast<std::size_t>(rank())];
    const std::lock_guard lock(mutex_);
    wire_.rows[leg_index] += leaving * row_bytes;
    wire_.counts += leaving * (width - row_bytes);
  }
  const std::int64_t ticket = routes.tickets++;
  routes.pending.emplace(ticket, std::move(pending));
  return ticket;
}

at::Tensor TokenDispatcher::finish(RowRoutes& routes, std::size_t chunk, Leg leg,
                                   std::int64_t ticket) {
  THINWIRE_ASSERT(routes.pending.contains(ticket));
  const RowRoutes::Pending pending = std::move(routes.pending.extract(ticket).mapped());
  const auto begin = Clock::now();
  if (pending.work != nullptr) {
    comm::wait(*group_, pending.work, kLegOperations[static_cast<std::size_t>(leg)],
               routes.sequence);
  }
  add_seconds(&MoESeconds::exchange, seconds_since(begin));
  const auto decode_begin = Clock::now();
  RouteChunk& part = routes.chunks[chunk];
  at::Tensor bytes = pending.incoming;
  if (leg == Leg::kDispatch && !part.has_arrived) {
    at::Tensor masks;
    if (pending.with_masks) {
      const RowCodec& codec = routes.codecs[static_cast<std::size_t>(leg)];
      const std::vector<std::int64_t>& counts = counts_of(part, leg, true);
      const std::int64_t room = padded(mask_bytes(placement_), codec, pending.dtype);
      const std::int64_t row_bytes = bytes.size(1) - room;
      masks = bytes.narrow(1, row_bytes, mask_bytes(placement_)).to(at::kCPU).contiguous();
      if (masks.size(0) > sum(counts)) {
        masks = masks.index_select(0, places_in_messages(codec, options_.dim, counts));
      }
      bytes = bytes.narrow(1, 0, row_bytes);
    }
    fill_arrived(part, placement_, rank(), masks);
  }
  at::Tensor rows = decode(routes, chunk, leg, bytes, pending.dtype, true);
  add_seconds(&MoESeconds::code, seconds_since(decode_begin));
  return rows;
}

at::Tensor TokenDispatcher::through_experts(const RowRoutesPtr& routes, const at::Tensor& rows,
                                            const Experts& experts) {
  const auto count = static_cast<std::int64_t>(routes->chunks.size());
  const auto dispatch = [&](std::int64_t chunk) {
    return start_leg(routes, chunk, Leg::kDispatch,
                     permuted(rows, routes->chunks[static_cast<std::size_t>(chunk)].by_receiver));
  };
  std::vector<at::Tensor> results;
  at::Tensor ticket = dispatch(0);
  for (std::int64_t chunk = 0; chunk < count; ++chunk) {
    const RouteChunk& part = routes->chunks[static_cast<std::size_t>(chunk)];
    const at::Tensor arrived = finish_leg(routes, chunk, Leg::kDispatch, ticket);
    if (chunk + 1 < count) ticket = dispatch(chunk + 1);
    const at::Tensor computed = experts(permuted(arrived, part.by_expert), part.expert_rows);
    results.push_back(start_leg(routes, chunk, Leg::kCombine, permuted(computed, part.by_source)));
  }
  for (std::int64_t chunk = 0; chunk < count; ++chunk) {
    at::Tensor& result = results[static_cast<std::size_t>(chunk)];
    result = finish_leg(routes, chunk, Leg::kCombine, result);
  }
  return permuted(count == 1 ? results.front() : at::cat(results), routes->order);
}

at::Tensor TokenDispatcher::as_received(const RowRoutesPtr& routes, const at::Tensor& rows) const {
  if (!routes->codecs[static_cast<std::size_t>(Leg::kDispatch)].active()) return rows;
  const at::NoGradGuard no_grad;
  const std::int64_t row_bytes = routes->codecs[static_cast<std::size_t>(Leg::kDispatch)].row_bytes(
      options_.dim, rows.scalar_type());
  std::vector<at::Tensor> parts;
  for (std::size_t chunk = 0; chunk < routes->chunks.size(); ++chunk) {
    at::Tensor bytes = routes->chunks[chunk].dispatched;
    THINWIRE_ASSERT(bytes.defined());
    // Without the masks that went with them.
    bytes = bytes.narrow(1, 0, row_bytes);
    parts.push_back(decode(*routes, chunk, Leg::kDispatch, bytes, rows.scalar_type(), false));
  }
  return permuted(at::cat(parts), routes->sent_of);
}

}  // namespace thinwire::moe
