#include "thinwire/launch/elastic/roster.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <tuple>

#include "thinwire/common/error.h"

namespace thinwire::launch {

// Beside the types, where argument-dependent look-up finds them.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Candidate, id, hint, is_new, finished, lifeline)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Roster, generation, ranks, writer)

namespace {

template <typename Type>
Type roster_part(const std::string& text) {
  try {
    return nlohmann::json::parse(text).get<Type>();
  } catch (const nlohmann::json::exception& error) {
    throw FrameError(
        concat("the store holds no roster; does another program write to it? ", error.what()));
  }
}

}  // namespace

int Roster::rank_of(int id) const {
  const auto found = std::ranges::find(ranks, id, &Candidate::id);
  return found == ranks.end() ? -1 : static_cast<int>(found - ranks.begin());
}

Roster make_roster(const Roster& before, std::vector<Candidate> candidates) {
  const auto key = [&](const Candidate& one) {
    const std::int64_t steps =
        std::accumulate(one.finished.begin(), one.finished.end(), std::int64_t{0});
    const int rank = before.rank_of(one.id);
    return std::tuple(one.is_new, one.is_new ? 0 : -steps, rank < 0 ? before.size() : rank,
                      one.hint, one.id);
  };
  std::ranges::sort(candidates, {}, key);
  return {before.generation + 1, std::move(candidates), 0};
}

int quorum(const Roster& before, int min_ranks) {
  return min_ranks > 0 ? min_ranks : before.size() / 2 + 1;
}

std::string to_text(const Candidate& candidate) {
  return nlohmann::json(candidate).dump();
}
std::string to_text(const Roster& roster) {
  return nlohmann::json(roster).dump();
}
Candidate candidate_from_text(const std::string& text) {
  return roster_part<Candidate>(text);
}
Roster roster_from_text(const std::string& text) {
  return roster_part<Roster>(text);
}

}  // namespace thinwire::launch
