// Sending rows to the ranks of their experts and back, differentiable, over any c10d backend.
//
// A forward pass makes one plan: an all_gather of a fixed number of bytes that tells every rank how
// many rows it will get for each of its experts, and at the same time whether all ranks are about
// to do the same thing. Dispatch, combine and both their backward passes reuse its counts.
//
// Collectives are started on the thread that calls plan/through_experts or the backward pass. No
// other thread may use the process group meanwhile.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/moe/dispatch/expert_placement.h"
#include "thinwire/moe/dispatch/row_routes.h"
#include "thinwire/moe/rows/basis_agreement.h"
#include "thinwire/moe/rows/leg_bytes.h"
#include "thinwire/moe/rows/leg_specs.h"

namespace thinwire::moe {

struct DispatcherOptions {
  std::int64_t dim = 0;
  std::int64_t experts = 1;
  LegSpecs rows;
  // Parts in which rows travel while the experts compute; 0: one for every half megabyte that a
  // rank dispatches on average, at most four.
  int chunks = 0;
  // Whether rows with equal keys are sent once to a rank.
  bool share_rows = true;
  std::uint32_t layer = 0;  // tells the layers of a model apart
  std::uint64_t seed = 0;   // of the codecs' random numbers
  // A text that must be the same on all ranks: the options of whoever uses the exchange.
  std::string agreement;
};

// What one rank's exchange has cost so far.
struct DispatchSummary {
  LegBytes wire;
  double code_seconds = 0;
  double wait_seconds = 0;    // plans and waiting for rows
  double expert_seconds = 0;  // of the experts' backward passes
};

class TokenDispatcher : public std::enable_shared_from_this<TokenDispatcher> {
 public:
  // Computes one chunk: rows [n, d] sorted by local expert, and how many each has -> [n, d].
  using Experts =
      std::function<at::Tensor(const at::Tensor& rows, const std::vector<std::int64_t>& counts)>;

  // `group` may be null: a single rank. Throws InvalidArgument for bad options. Not collective.
  static std::shared_ptr<TokenDispatcher> make(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                               const DispatcherOptions& options);

  // Collective. Throws InvalidArgument, with one text on every rank, when a rank reports a failure
  // or when the ranks disagree on anything (options, dtype, mode, order of the layers); the group
  // is still usable then. Throws CommError when a rank is gone.
  RowRoutesPtr plan(const RouteRequest& request);

  // rows: [n, d], sorted by expert -> what the experts made of them, in the same order. While one
  // chunk is computed, the rows of the next and the results of the last are under way. Collective,
  // as is its backward pass.
  at::Tensor through_experts(const RowRoutesPtr& plan, const at::Tensor& rows,
                             const Experts& experts);

  // Of rows that went through_experts() with plan->keep_dispatched set, what the experts saw.
  // Local, not differentiable.
  at::Tensor as_received(const RowRoutesPtr& plan, const at::Tensor& rows) const;

  int rank() const { return group_ == nullptr ? 0 : group_->getRank(); }
  int ranks() const { return placement_.ranks; }
  const ExpertPlacement& placement() const { return placement_; }
  const DispatcherOptions& options() const { return options_; }
  // With the newest basis, where the codec has one.
  const RowCodec& codec(Leg leg) const { return codecs_[static_cast<std::size_t>(leg)]; }
  const c10::intrusive_ptr<c10d::ProcessGroup>& group() const { return group_; }
  // Whether row keys make a difference.
  bool shares_rows() const;
  DispatchSummary use() const;

  // A new text that must be the same on all ranks from the next plan on.
  void set_agreement(const std::string& text);
  // Bases of spectral legs and what they grow from, for checkpoints.
  NamedTensors state() const;
  void load_state(const NamedTensors& state);

  // One leg of one chunk without autograd: start() codes rows and begins to send them, finish()
  // waits for those of the other ranks.
  void start(RowRoutes& plan, std::size_t chunk, Leg leg, const at::Tensor& rows);
  at::Tensor finish(RowRoutes& plan, std::size_t chunk, Leg leg);
  void add_expert_seconds(double seconds);

 private:
  TokenDispatcher(c10::intrusive_ptr<c10d::ProcessGroup> group, const DispatcherOptions& options);

  // Random numbers for the rows of one (sender, receiver) in one chunk.
  RandomKey key(const RowRoutes& plan, std::size_t chunk, Leg leg, int from, int to) const;
  std::vector<RowSegment> segments(const RowRoutes& plan, std::size_t chunk, Leg leg,
                                   bool incoming) const;
  at::Tensor decode(const RowRoutes& plan, std::size_t chunk, Leg leg, const at::Tensor& bytes,
                    at::ScalarType dtype, bool incoming) const;
  void agree_on_bases(at::Device device, std::uint64_t sequence);
  void add_wire(std::int64_t LegBytes::*what, std::int64_t bytes);

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  DispatcherOptions options_;
  ExpertPlacement placement_;
  std::string own_agreement_;
  std::array<RowCodec, kLegs> codecs_;
  std::vector<BasisLeg> bases_;  // of the spectral legs
  std::uint64_t agreement_hash_ = 0;
  std::uint64_t sequence_ = 0;
  std::int64_t training_plans_ = 0;
  mutable std::mutex mutex_;  // of what a backward pass on another thread may touch
  DispatchSummary use_;
};

}  // namespace thinwire::moe
