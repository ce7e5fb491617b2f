#include "thinwire/moe/dispatch/token_dispatcher.h"

#include <numeric>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <xxhash.h>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/moe/dispatch/backward_watch.h"
#include "thinwire/moe/dispatch/leg_nodes.h"
#include "thinwire/moe/dispatch/route_chunks.h"

namespace thinwire::moe {
namespace {

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
  at::Tensor message = at::zeros({rows.size(0), rows.size(1) + room}, rows.options());
  message.narrow(1, 0, rows.size(1)).copy_(rows);
  message.narrow(1, rows.size(1), masks.size(1)).copy_(masks);
  return message;
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
  if (ranks() > 1) install_backward_watch();
}

void TokenDispatcher::set_agreement(const std::string& text) {
  options_.agreement = concat(own_agreement_, "\n", text);
  agreement_hash_ = XXH3_64bits(options_.agreement.data(), options_.agreement.size());
}

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
    pending.outgoing =
        with_masks(pending.outgoing, part.masks, padded(part.masks.size(1), codec, pending.dtype));
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
  auto node = routes.pending.extract(ticket);
  THINWIRE_ASSERT(!node.empty());
  const RowRoutes::Pending& pending = node.mapped();
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
      const std::int64_t room = padded(mask_bytes(placement_),
                                       routes.codecs[static_cast<std::size_t>(leg)], pending.dtype);
      const std::int64_t row_bytes = bytes.size(1) - room;
      masks = bytes.narrow(1, row_bytes, mask_bytes(placement_)).to(at::kCPU).contiguous();
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
                     permuted(rows, routes->chunks[static_cast<std::size_t>(chunk)].outgoing));
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

LegBytes TokenDispatcher::wire() const {
  const std::lock_guard lock(mutex_);
  return wire_;
}

MoESeconds TokenDispatcher::seconds() const {
  const std::lock_guard lock(mutex_);
  return seconds_;
}

void TokenDispatcher::add_wire(std::int64_t LegBytes::*what, std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  wire_.*what += bytes;
}

void TokenDispatcher::add_seconds(double MoESeconds::*what, double seconds) {
  const std::lock_guard lock(mutex_);
  seconds_.*what += seconds;
}

void TokenDispatcher::agree_on_bases(at::Device device, std::uint64_t sequence) {
  std::vector<BasisLeg*> due;
  std::vector<RowMoments> fresh;
  {
    const std::lock_guard lock(mutex_);
    for (BasisLeg& leg : bases_) {
      if (!leg.is_due(training_routes_)) continue;
      due.push_back(&leg);
      fresh.push_back(std::exchange(leg.fresh, RowMoments(options_.dim)));
    }
  }
  if (due.empty()) return;
  add_wire(&LegBytes::bases,
           moe::agree_on_bases(group_.get(), due, fresh, options_.dim, device, sequence));
  for (const BasisLeg* leg : due) {
    RowCodec& codec = codecs_[static_cast<std::size_t>(leg->leg)];
    codec = codec.with_basis(leg->usable());
  }
}

}  // namespace thinwire::moe
