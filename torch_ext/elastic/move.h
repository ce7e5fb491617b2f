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
//
// Ranks may die meanwhile. So nobody takes over the half of a step: until all that rank 0 gives has
// come (take_over()) a rank stands where it stood and can still make the step again, should those
// who have finished it all be gone; from then on it is one of these, wherever it gets to next.
#pragma once

#include <chrono>
#include <concepts>
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

// What can change worlds: DistributedDataParallel and OuterOptimizer. begin_step() and end_step()
// stand around each step, which no other step's exchanges reach into. Then, in this order:
//
//   leave()         ends with the world and keeps what is to be carried from it. May be called
//                   again, with another standing, where the world to come has failed.
//   shared_state()  what of that is the same on all ranks
//   take_over()     rank 0's, in the place of this rank's
//   arrive()        goes on over another group. Collective; where it throws, the part can do
//                   nothing but leave() and arrive() again. `timeout` is that of the collectives to
//                   come: while a world is being made, its group has a shorter one.
template <typename Part>
concept Movable = requires(Part& part, const Part& left, Standing standing,
                           const NamedTensors& of_rank_0,
                           const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                           std::chrono::milliseconds timeout) {
  part.begin_step();
  part.end_step();
  { part.finished_steps() } -> std::convertible_to<std::int64_t>;
  part.leave(standing);
  { left.shared_state() } -> std::same_as<NamedTensors>;
  part.take_over(of_rank_0);
  part.arrive(group, timeout);
};

struct Move {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  Standing standing = Standing::kGoesOn;
  std::chrono::milliseconds timeout = std::chrono::minutes(5);
};

namespace detail {

// Rank 0's `mine`, on every rank of the group, on the CPU. Collective. Errors name `operation`:
// InvalidArgument without a group, FrameError where the sizes that rank 0 announces cannot be.
NamedTensors tensors_of_rank_0(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                               const NamedTensors& mine, const std::string& operation);

// Of a state of gradients or of an outer optimizer, as merge_states() knows them: what is the same
// on all ranks; and a state with that of rank 0 and what is this rank's own in `mine`, or nothing
// such where it is new.
NamedTensors shared_part(const NamedTensors& mine);
NamedTensors with_shared_part(const NamedTensors& of_rank_0, const NamedTensors& mine,
                              Standing standing);

}  // namespace detail

// One part alone, all of the above. Collective over the new group.
template <Movable Part>
void move_to(Part& part, const Move& move) {
  part.leave(move.standing);
  part.take_over(
      detail::tensors_of_rank_0(move.group, part.shared_state(), "moving to another world"));
  part.arrive(move.group, move.timeout);
}

}  // namespace thinwire
