// Sending rows to the ranks of their experts and back, differentiable, over any c10d backend.
//
// A forward pass begins with route(): one all_to_all of a few numbers that tells every rank how
// many rows it will get from each other, and at the same time whether all ranks are about to do the
// same thing. Dispatch, combine and their backward passes reuse these routes. (Every so many steps
// spectral rows need new bases: two collectives more.)
//
// Collectives are started on the thread that calls route/through_experts or the backward pass. No
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

#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/state/named_tensors.h"
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
  // A text that must be the same on all ranks: the options of whoever uses the dispatcher.
  std::string agreement;
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
  // or when the ranks disagree on anything (options, dtype, mode, order of the layers): a refusal
  // before anything began, after which the group can be used (docs/errors.md). Throws CommError
  // when a rank is gone.
  RowRoutesPtr route(const RouteRequest& request);

  // rows: [n, d], sorted by expert -> what the experts made of them, in the same order. While one
  // chunk is computed, the rows of the next and the results of the last are under way. Collective,
  // as is its backward pass. Differentiable twice where no leg has a codec; where one has, the
  // second derivative is an InvalidArgument: what a codec rounds has none.
  at::Tensor through_experts(const RowRoutesPtr& routes, const at::Tensor& rows,
                             const Experts& experts);

  // Of rows that went through_experts() with routes->keep_dispatched set, what the experts saw.
  // Local, not differentiable.
  at::Tensor as_received(const RowRoutesPtr& routes, const at::Tensor& rows) const;

  int rank() const { return group_ == nullptr ? 0 : group_->getRank(); }
  int ranks() const { return placement_.ranks; }
  const ExpertPlacement& placement() const { return placement_; }
  const DispatcherOptions& options() const { return options_; }
  // With the newest basis, where the codec has one.
  const RowCodec& codec(Leg leg) const { return codecs_[static_cast<std::size_t>(leg)]; }
  const c10::intrusive_ptr<c10d::ProcessGroup>& group() const { return group_; }
  // Whether row keys make a difference.
  bool shares_rows() const;
  // All that this rank has sent so far for routes, rows and bases, with what add_replica_bytes()
  // was told; and what it took: codecs, routes and waiting for rows, and the experts' backward
  // passes. Thread-safe, and never waits for the network.
  LegBytes wire() const;
  MoESeconds seconds() const;

  // A new text that must be the same on all ranks from the next route() on.
  void set_agreement(const std::string& text);
  // Bases of spectral legs and what they grow from, for checkpoints. load_state() throws
  // InvalidArgument for shapes that do not fit, before anything is changed; check_state() is that
  // check alone.
  NamedTensors state() const;
  void check_state(const NamedTensors& state) const;
  void load_state(const NamedTensors& state);

  // comm::guard() over the ranks of this dispatcher.
  template <typename Action>
  auto guard(const char* operation, std::uint64_t sequence, const Action& action) const {
    return ranks() == 1 ? action() : comm::guard(*group_, operation, sequence, action);
  }

  // One leg of one chunk without autograd: start() codes rows and begins to send them, finish()
  // waits for those of the other ranks. start() returns the ticket that finish() takes.
  std::int64_t start(RowRoutes& routes, std::size_t chunk, Leg leg, const at::Tensor& rows);
  at::Tensor finish(RowRoutes& routes, std::size_t chunk, Leg leg, std::int64_t ticket);
  void add_expert_seconds(double seconds) { add_seconds(&MoESeconds::experts, seconds); }
  void add_replica_bytes(std::int64_t bytes) { add_wire(&LegBytes::replicas, bytes); }

 private:
  TokenDispatcher(c10::intrusive_ptr<c10d::ProcessGroup> group, const DispatcherOptions& options);

  // Random numbers for the rows of one (sender, receiver) in one chunk.
  RandomKey key(const RowRoutes& routes, std::size_t chunk, Leg leg, int from, int to) const;
  std::vector<RowSegment> segments(const RowRoutes& routes, std::size_t chunk, Leg leg,
                                   bool incoming) const;
  at::Tensor decode(const RowRoutes& routes, std::size_t chunk, Leg leg, const at::Tensor& bytes,
                    at::ScalarType dtype, bool incoming) const;
  void agree_on_bases(at::Device device, std::uint64_t sequence);
  void add_wire(std::int64_t LegBytes::*what, std::int64_t bytes);
  void add_seconds(double MoESeconds::*what, double seconds);

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  DispatcherOptions options_;
  ExpertPlacement placement_;
  std::string own_agreement_;
  std::array<RowCodec, kLegs> codecs_;
  std::vector<BasisLeg> bases_;  // of the spectral legs
  std::uint64_t agreement_hash_ = 0;
  std::uint64_t sequence_ = 0;
  std::int64_t training_routes_ = 0;
  // Of what a backward pass on another thread may touch: fresh moments, bytes and seconds. Never
  // held while waiting for another rank.
  mutable std::mutex mutex_;
  LegBytes wire_;
  MoESeconds seconds_;
};

}  // namespace thinwire::moe
