#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/launch/elastic/roster.h"

namespace thinwire::launch {
namespace {

std::vector<int> ids_of(const Roster& roster) {
  std::vector<int> ids;
  for (const Candidate& rank : roster.ranks) ids.push_back(rank.id);
  return ids;
}

TEST(Roster, TheFirstWorldIsInTheOrderOfTheLauncher) {
  const Roster first = make_roster(
      {}, {{.id = 1, .hint = 2}, {.id = 2, .hint = 0}, {.id = 3, .hint = 1}, {.id = 4, .hint = 0}});
  EXPECT_EQ(first.generation, 1);
  EXPECT_EQ(ids_of(first), (std::vector<int>{2, 4, 3, 1}));
}

TEST(Roster, TheFurthestComesFirstThenTheOthersInTheirOrderThenTheNew) {
  const Roster before{5, {{.id = 1}, {.id = 2}, {.id = 3}, {.id = 4}}, 1};
  const Roster next = make_roster(before, {{.id = 9, .hint = 0, .is_new = true, .finished = {99}},
                                           {.id = 1, .is_new = false, .finished = {7}},
                                           {.id = 4, .is_new = false, .finished = {8}},
                                           {.id = 3, .is_new = false, .finished = {7}}});
  EXPECT_EQ(next.generation, 6);
  EXPECT_EQ(ids_of(next), (std::vector<int>{4, 1, 3, 9}));
  EXPECT_EQ(next.rank_of(3), 2);
  EXPECT_EQ(next.rank_of(2), -1);
}

TEST(Roster, MoreThanHalfGoOnUnlessTheProgramSaysHowMany) {
  const Roster four{1, std::vector<Candidate>(4), 1}, five{1, std::vector<Candidate>(5), 1};
  EXPECT_EQ(quorum(four, 0), 3);
  EXPECT_EQ(quorum(five, 0), 3);
  EXPECT_EQ(quorum(five, 1), 1);
}

TEST(Roster, TravelsAsText) {
  const Roster roster{3, {{.id = 7, .hint = 1, .is_new = false, .finished = {1, 2}}, {.id = 8}}, 7};
  const Roster read = roster_from_text(to_text(roster));
  EXPECT_EQ(read.generation, 3);
  EXPECT_EQ(read.ranks, roster.ranks);
  EXPECT_EQ(read.writer, 7);
  EXPECT_EQ(candidate_from_text(to_text(roster.ranks[0])), roster.ranks[0]);
  EXPECT_THROW(roster_from_text("{\"generation\": 1}"), FrameError);
  EXPECT_THROW(candidate_from_text("no"), FrameError);
}

}  // namespace
}  // namespace thinwire::launch
