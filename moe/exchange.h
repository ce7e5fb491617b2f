// Sending rows to the ranks of their experts and back, differentiable, over any c10d backend.
//
// A forward pass makes one plan: an all_gather of a fixed number of bytes that tells every rank how
// many rows it will get for each of its experts, and at the same time whether all ranks are about
// to do the same thing. Dispatch, combine and both their backward passes reuse its counts.
//
// Collectives run on the thread that calls plan/dispatch/combine or the backward pass. No other
// thread may use the process group meanwhile.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/moe/expert_placement.h"
#include "thinwire/moe/row_codec.h"
#include "thinwire/moe/row_ops.h"

namespace thinwire::moe {

// The four times that rows cross the network in one training step.
enum class Leg { kDispatch = 0, kCombine = 1, kCombineBackward = 2, kDispatchBackward = 3 };
inline constexpr int kLegs = 4;

// Spec of the row codec of every leg; "" sends rows as they are. Gradients pass through lossy legs
// unchanged (straight-through); unbiased codecs (rounding=stochastic) suit the backward legs.
struct LegSpecs {
  std::string dispatch = {};
  std::string combine = {};
  std::string combine_backward = {};
  std::string dispatch_backward = {};
};

struct ExchangeOptions {
  std::int64_t dim = 0;
  std::int64_t experts = 1;
  LegSpecs rows;
  std::uint32_t layer = 0;  // tells the layers of a model apart
  std::uint64_t seed = 0;   // of the codecs' random numbers
  // A text that must be the same on all ranks: the options of whoever uses the exchange.
  std::string agreement;
};

// Bytes that this rank handed to the network, payload only, since the exchange was made. Rows that
// stay on this rank cost nothing.
struct WireBytes {
  std::array<std::int64_t, kLegs> rows{};
  std::int64_t counts = 0;  // of the plans
  std::int64_t total() const { return rows[0] + rows[1] + rows[2] + rows[3] + counts; }
  WireBytes operator-(const WireBytes& earlier) const {
    WireBytes difference = *this;
    for (std::size_t leg = 0; leg < rows.size(); ++leg) difference.rows[leg] -= earlier.rows[leg];
    difference.counts -= earlier.counts;
    return difference;
  }
};

class Exchange;

// One forward pass: who sends how many rows to whom. Counts are per source rank and expert.
struct ExchangePlan : torch::CustomClassHolder {
  std::shared_ptr<Exchange> exchange;
  std::uint64_t sequence = 0;
  std::vector<std::int64_t> sent;                // [ranks] rows from this rank to each other
  std::vector<std::int64_t> received;            // [ranks]
  std::vector<std::int64_t> expert_rows;         // [local experts] rows of all ranks
  std::vector<std::int64_t> global_expert_rows;  // [experts] rows of all ranks
  // Received rows, which are sorted by source rank, to rows sorted by expert, and back.
  RowMapPtr by_expert;
  RowMapPtr by_source;
  bool needs_input_gradient = false;  // some rank wants the gradient of its rows
  // Sums over the ranks, in rank order, of the values that they passed to plan().
  std::array<double, 2> sums{};
};
using ExchangePlanPtr = c10::intrusive_ptr<ExchangePlan>;

// What a rank brings to a plan.
struct PlanRequest {
  std::vector<std::int64_t> expert_rows;  // [experts] rows of this rank
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  bool training = true;
  bool needs_input_gradient = false;
  std::array<double, 2> sums{};
  // Not empty: this rank cannot go on, and says why to all the others.
  std::string failure;
};

class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  // `group` may be null: a single rank. Throws InvalidArgument for bad options. Not collective.
  static std::shared_ptr<Exchange> make(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                        const ExchangeOptions& options);

  // Collective. Throws InvalidArgument, with one text on every rank, when a rank reports a failure
  // or when the ranks disagree on anything (options, dtype, mode, order of the layers); the group
  // is still usable then. Throws CommError when a rank is gone.
  ExchangePlanPtr plan(const PlanRequest& request);

  // rows: [sum of sent, d], sorted by expert -> the rows of this rank's experts, sorted by expert,
  // those of one expert by source rank. Collective, as is its backward pass.
  at::Tensor dispatch(const ExchangePlanPtr& plan, const at::Tensor& rows);
  // The way back: what came out of the experts, in the order in which dispatch() got its rows.
  at::Tensor combine(const ExchangePlanPtr& plan, const at::Tensor& rows);

  // Of rows that dispatch() is about to send, what the experts will see; rows itself if the
  // dispatch leg has no codec. Local, not differentiable.
  at::Tensor as_received(const ExchangePlanPtr& plan, const at::Tensor& rows) const;

  int rank() const { return group_ == nullptr ? 0 : group_->getRank(); }
  int ranks() const { return placement_.ranks; }
  const ExpertPlacement& placement() const { return placement_; }
  const ExchangeOptions& options() const { return options_; }
  const RowCodec& codec(Leg leg) const { return codecs_[static_cast<std::size_t>(leg)]; }
  const c10::intrusive_ptr<c10d::ProcessGroup>& group() const { return group_; }
  WireBytes wire_bytes() const;

  // Moves rows without autograd, [sum of send, d] -> [sum of receive, d].
  at::Tensor transfer(const ExchangePlan& plan, const at::Tensor& rows, Leg leg);

 private:
  Exchange(c10::intrusive_ptr<c10d::ProcessGroup> group, const ExchangeOptions& options);

  // `segment` numbers the (sender, receiver) pairs.
  RandomKey key(std::uint64_t sequence, Leg leg, int segment) const;

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  ExchangeOptions options_;
  ExpertPlacement placement_;
  std::array<RowCodec, kLegs> codecs_;
  std::uint64_t agreement_hash_;
  std::uint64_t sequence_ = 0;
  std::array<std::atomic<std::int64_t>, kLegs> row_bytes_{};
  std::atomic<std::int64_t> count_bytes_ = 0;
};

}  // namespace thinwire::moe
