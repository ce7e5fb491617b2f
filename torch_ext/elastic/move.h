// What takes a part of a training program from one world to the next.
//
// Note [Changing worlds]
//
// When the ranks of a training change (launch/elastic/), whatever talks to other ranks goes on over
// another group. The ranks that come together may stand at different places: a failure reaches one
// rank before it has ended a step and another after it. No two of them are more than one step
// apart, and who is ahead knows that the others had finished all of theirs but the end: the step's
// last exchange (BucketAverager::agree()) is passed only once every rank has the means and has kept
// what encoding them lost. So nothing that was computed is thrown away:
//
//   somebody is ahead   the step counts. Those behind take rank 0's parameters, optimizer and
//                       counters, for it stands where the furthest rank does; their own residuals
//                       are those after the step already.
//   nobody is           the step is made again by those who are left; what it has changed of
//                       residuals and buffers is taken back first.
//
// Residuals stay with their ranks as they are: the mean of what the survivors are owed stands in
// for the mean over all. What the dead rank's residual held is lost; what it held of means, as the
// owner of a slice, too.
#pragma once

#include <chrono>
#include <string>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/state/named_tensors.h"

namespace thinwire {

// Where a rank stands among those that begin a world together.
enum class Standing {
  kGoesOn,   // between two steps, as far as any
  kRepeats,  // as far as any, and its step failed: what it has changed since begin_step() goes back
  kBehind,   // has finished a step that counts, without knowing its end
  kNew,      // has nothing of its own
};

struct Move {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  Standing standing = Standing::kGoesOn;
  // Of the collectives to come; while the world is being made, the group has a shorter one.
  std::chrono::milliseconds timeout = std::chrono::minutes(5);

  // Takes what rank 0 has of all that is the same on all ranks.
  bool takes_over() const { return standing >= Standing::kBehind; }
};

// What can change worlds: DistributedDataParallel and OuterOptimizer. begin_step() and end_step()
// stand around each step, which no other step's exchanges reach into.
template <typename Part>
concept Movable = requires(Part& part, const Move& move) {
  part.begin_step();
  part.end_step();
  { part.finished_steps() } -> std::convertible_to<std::int64_t>;
  part.move_to(move);
};

namespace detail {

// Rank 0's tensors, on every rank of the group, on the CPU. Collective; `mine` counts on rank 0
// alone. `operation` is what errors name.
NamedTensors tensors_of_rank_0(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                               const NamedTensors& mine, const std::string& operation);

// A state of gradients or of an outer optimizer, as merge_states() knows them, for a rank that goes
// on: what is the same on all ranks from rank 0, residuals its own, or none where it is new.
// Collective.
NamedTensors carried_over(const Move& move, const NamedTensors& mine, const std::string& operation);

}  // namespace detail
}  // namespace thinwire
