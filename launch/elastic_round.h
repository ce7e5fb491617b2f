// The rounds of an elastic job, which share one store.
//
// Note [Rounds]
//
// torchrun's agents serve one store for the whole job, so a round that starts after a failure finds
// what the rounds before have left there: who came, which addresses they had. Nothing in a worker's
// environment tells the round: TORCHELASTIC_RESTART_COUNT is each agent's own count, and agents of
// one round have different ones. So rank 0 opens each round under a name that nobody had before,
// and posts it. Another rank may still find the name of an earlier round: it joins only once it has
// seen that the rank 0 of that round is alive, and leaves for the next one where it is not.
#pragma once

#include <chrono>
#include <utility>
#include <vector>

#include <torch/csrc/distributed/c10d/Store.hpp>

#include "thinwire/launch/enrolment.h"

namespace thinwire::launch {

// The round's own part of the store, and its members.
struct Round {
  c10::intrusive_ptr<c10d::Store> store;
  std::vector<Enrolment> members;
};

// enrol() in the present round of the job that has `store`. Collective over the ranks of the round.
// Throws as enrol() does; CommError where rank 0 has opened no round within the timeout.
Round enrol_in_round(const c10::intrusive_ptr<c10d::Store>& store, int rank, const Enrolment& mine,
                     std::chrono::milliseconds timeout);

}  // namespace thinwire::launch
