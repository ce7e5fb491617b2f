// Who is in a world of a training whose ranks may change, and in which order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thinwire::launch {

// What a process says of itself when it asks for the next world.
struct Candidate {
  int id = 0;          // that no other process of the job has
  int hint = 0;        // its rank as its launcher told it
  bool is_new = true;  // has nothing of the training yet
  // Finished steps of everything that moves, in one order; see Movable.
  std::vector<std::int64_t> finished = {};
  std::string lifeline = {};  // the address of its Lifeline; may be empty

  bool operator==(const Candidate&) const = default;
};

// A world: its ranks in order. The first of them stands where the furthest does.
struct Roster {
  std::int64_t generation = 0;
  std::vector<Candidate> ranks;
  int writer = 0;  // id of the process that found it complete: two may write the same ranks

  // -1 where it is not among them.
  int rank_of(int id) const;
  int size() const { return static_cast<int>(ranks.size()); }
};

// The next world of `candidates`, those of `before` in the order of the furthest and then of their
// ranks there; then the new ones, by hint.
Roster make_roster(const Roster& before, std::vector<Candidate> candidates);

// How many of those that were in `before` must come together: `min_ranks`, or where that is 0 more
// than half of them, so that the smaller part of a job that has fallen in two does not go on.
int quorum(const Roster& before, int min_ranks);

// JSON. from_text() throws FrameError for what to_text() did not write.
std::string to_text(const Candidate& candidate);
std::string to_text(const Roster& roster);
Candidate candidate_from_text(const std::string& text);
Roster roster_from_text(const std::string& text);

}  // namespace thinwire::launch
