#include "thinwire/moe/exchange.h"

#include <numeric>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <xxhash.h>

#include "thinwire/comm/failure.h"

namespace thinwire::moe {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kLegNames[kLegs] = {"dispatch of tokens to experts", "combine of tokens",
                                          "backward of combine", "backward of dispatch"};
// Keeps the random numbers of row codecs apart from those of gradient codecs ("MOE").
constexpr std::uint32_t kStage = 0x4D4F4500;

std::int64_t sum(const std::vector<std::int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

// Towards the experts go `sent` rows a rank, away from them `received`.
bool towards_experts(Leg leg) {
  return leg == Leg::kDispatch || leg == Leg::kCombineBackward;
}

// One leg forward and its counterpart backward. `anchor` makes the function part of the graph even
// on a rank whose rows need no gradient: the backward exchange needs every rank.
class MoveRows : public torch::autograd::Function<MoveRows> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows,
                            const at::Tensor& /*anchor*/, const ExchangePlanPtr& plan, bool out) {
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    ctx->saved_data["out"] = out;
    return plan->exchange->transfer(*plan, rows, out ? Leg::kDispatch : Leg::kCombine);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto plan =
        c10::static_intrusive_pointer_cast<ExchangePlan>(ctx->saved_data["plan"].toCapsule());
    const bool out = ctx->saved_data["out"].toBool();
    if (out && !plan->needs_input_gradient) return {{}, {}, {}, {}};
    const Leg leg = out ? Leg::kDispatchBackward : Leg::kCombineBackward;
    return {plan->exchange->transfer(*plan, gradients[0], leg), {}, {}, {}};
  }
};

at::Tensor anchor(const at::Tensor& rows) {
  return at::empty({0}, rows.options().dtype(at::kFloat))
      .requires_grad_(at::GradMode::is_enabled());
}

}  // namespace

std::shared_ptr<Exchange> Exchange::make(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                         const ExchangeOptions& options) {
  return std::shared_ptr<Exchange>(new Exchange(std::move(group), options));
}

Exchange::Exchange(c10::intrusive_ptr<c10d::ProcessGroup> group, const ExchangeOptions& options)
    : group_(std::move(group)),
      options_(options),
      placement_(options.experts, group_ == nullptr ? 1 : group_->getSize()),
      codecs_{RowCodec(options.rows.dispatch), RowCodec(options.rows.combine),
              RowCodec(options.rows.combine_backward), RowCodec(options.rows.dispatch_backward)} {
  check(options.dim >= 1, "rows need at least one element, got a width of ", options.dim);
  options_.agreement = concat(
      "layer ", options.layer, "\nwidth ", options.dim, "\nexperts ", options.experts, "\nseed ",
      options.seed, "\ndispatch ", codec(Leg::kDispatch).spec(), "\ncombine ",
      codec(Leg::kCombine).spec(), "\ncombine backward ", codec(Leg::kCombineBackward).spec(),
      "\ndispatch backward ", codec(Leg::kDispatchBackward).spec(), "\n", options.agreement);
  agreement_hash_ = XXH3_64bits(options_.agreement.data(), options_.agreement.size());
}

RandomKey Exchange::key(std::uint64_t sequence, Leg leg, int segment) const {
  return {.seed = options_.seed,
          .step = sequence,
          .layer = options_.layer,
          .rank = static_cast<std::uint32_t>(segment),
          .stage = kStage + static_cast<std::uint32_t>(leg)};
}

at::Tensor Exchange::transfer(const ExchangePlan& plan, const at::Tensor& rows, Leg leg) {
  const auto& send = towards_experts(leg) ? plan.sent : plan.received;
  const auto& receive = towards_experts(leg) ? plan.received : plan.sent;
  check(rows.dim() == 2 && rows.size(0) == sum(send) && rows.size(1) == options_.dim,
        "rows of shape [", sum(send), ", ", options_.dim, "] expected for the ",
        kLegNames[static_cast<int>(leg)], ", got ", rows.sizes());
  const RowCodec& codec = this->codec(leg);
  const std::int64_t row_bytes = codec.row_bytes(options_.dim, rows.scalar_type());
  const int me = rank();

  at::Tensor outgoing;
  if (codec.active()) {
    // Every (sender, receiver) has its own random numbers, counted from its first row, which both
    // know.
    std::vector<at::Tensor> parts;
    std::int64_t begin = 0;
    for (int peer = 0; peer < ranks(); ++peer) {
      const std::int64_t count = send[static_cast<std::size_t>(peer)];
      parts.push_back(
          codec.encode(rows.narrow(0, begin, count), key(plan.sequence, leg, me * ranks() + peer)));
      begin += count;
    }
    outgoing = at::cat(parts);
  } else {
    outgoing = codec.encode(rows, {});
  }

  at::Tensor incoming = outgoing;
  if (ranks() > 1) {
    incoming = at::empty({sum(receive), row_bytes}, outgoing.options());
    auto send_rows = send;
    auto receive_rows = receive;
    const int leg_index = static_cast<int>(leg);
    row_bytes_[static_cast<std::size_t>(leg)] +=
        (sum(send) - send[static_cast<std::size_t>(me)]) * row_bytes;
    comm::wait(*group_, group_->alltoall_base(incoming, outgoing, receive_rows, send_rows),
               kLegNames[leg_index], plan.sequence);
  }
  if (!codec.active()) return codec.decode(incoming, options_.dim, rows.scalar_type(), {});

  std::vector<at::Tensor> parts;
  std::int64_t begin = 0;
  for (int peer = 0; peer < ranks(); ++peer) {
    const std::int64_t count = receive[static_cast<std::size_t>(peer)];
    parts.push_back(codec.decode(incoming.narrow(0, begin, count), options_.dim, rows.scalar_type(),
                                 key(plan.sequence, leg, peer * ranks() + me)));
    begin += count;
  }
  return at::cat(parts);
}

at::Tensor Exchange::dispatch(const ExchangePlanPtr& plan, const at::Tensor& rows) {
  return map_rows(MoveRows::apply(rows, anchor(rows), plan, true), plan->by_expert);
}

at::Tensor Exchange::combine(const ExchangePlanPtr& plan, const at::Tensor& rows) {
  return MoveRows::apply(map_rows(rows, plan->by_source), anchor(rows), plan, false);
}

at::Tensor Exchange::as_received(const ExchangePlanPtr& plan, const at::Tensor& rows) const {
  const RowCodec& codec = this->codec(Leg::kDispatch);
  if (!codec.active()) return rows;
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  std::int64_t begin = 0;
  for (int peer = 0; peer < ranks(); ++peer) {
    const std::int64_t count = plan->sent[static_cast<std::size_t>(peer)];
    const RandomKey row_key = key(plan->sequence, Leg::kDispatch, rank() * ranks() + peer);
    parts.push_back(codec.decode(codec.encode(rows.narrow(0, begin, count), row_key), options_.dim,
                                 rows.scalar_type(), row_key));
    begin += count;
  }
  return at::cat(parts);
}

WireBytes Exchange::wire_bytes() const {
  WireBytes bytes;
  for (int leg = 0; leg < kLegs; ++leg) {
    bytes.rows[static_cast<std::size_t>(leg)] = row_bytes_[static_cast<std::size_t>(leg)];
  }
  bytes.counts = count_bytes_;
  return bytes;
}

}  // namespace thinwire::moe
