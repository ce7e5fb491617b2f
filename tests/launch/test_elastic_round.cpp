#include "thinwire/launch/elastic_round.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::launch {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using thinwire::testing::error_of;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

Enrolment of_size(int size, const std::string& host) {
  return {.size = size, .host = host, .backend = "gloo"};
}

// One round of `size` ranks on hosts with this name, rank 0 coming last.
std::vector<Round> round_of(const StorePtr& store, int size, const std::string& host) {
  std::vector<Round> rounds(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = size - 1; rank >= 0; --rank) {
    if (rank == 0) std::this_thread::sleep_for(milliseconds(100));
    threads.emplace_back([&, rank] {
      rounds[static_cast<std::size_t>(rank)] =
          enrol_in_round(store, rank, of_size(size, host), milliseconds(30000));
    });
  }
  for (std::thread& thread : threads) thread.join();
  return rounds;
}

void expect_members(const std::vector<Round>& rounds, const std::string& host) {
  for (const Round& round : rounds) {
    EXPECT_EQ(round.members.size(), rounds.size());
    for (const Enrolment& member : round.members) EXPECT_EQ(member.host, host);
    // All have one part of the store.
    round.store->add("seen", 1);
  }
  EXPECT_EQ(rounds[0].store->add("seen", 0), static_cast<std::int64_t>(rounds.size()));
}

TEST(ElasticRound, EachRoundHasItsOwnMembersAndStore) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  expect_members(round_of(store, 3, "first"), "first");
  // Fewer, then more; ranks but rank 0 find the rounds before.
  expect_members(round_of(store, 2, "second"), "second");
  expect_members(round_of(store, 4, "third"), "third");
}

TEST(ElasticRound, ARoundThatNeverBeganDoesNoHarm) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  EXPECT_THAT(error_of<CommError>(
                  [&] { enrol_in_round(store, 0, of_size(3, "first"), milliseconds(100)); }),
              HasSubstr("ranks 1, 2 of 3 did not come"));
  expect_members(round_of(store, 2, "second"), "second");
}

TEST(ElasticRound, WithoutRank0EndsInTime) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const auto come = [&] { enrol_in_round(store, 1, of_size(2, "host"), milliseconds(100)); };
  EXPECT_THAT(error_of<CommError>(come), HasSubstr("rank 0 of 2 did not come within 0.1 s"));
  // Nor is a round that is over taken for it.
  round_of(store, 2, "host");
  EXPECT_THAT(error_of<CommError>(come), HasSubstr("rank 0 of 2 did not come within 0.1 s"));
}

TEST(ElasticRound, AMistakeIsThatOfAllItsRanks) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::string> errors(3);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 3; ++rank)
    threads.emplace_back([&, rank] {
      auto mine = of_size(3, "host");
      if (rank == 1) mine.problem = "its cable is out";
      errors[static_cast<std::size_t>(rank)] =
          error_of([&] { enrol_in_round(store, rank, mine, milliseconds(30000)); });
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(errors, ::testing::Each("rank 1: its cable is out"));
}

}  // namespace
}  // namespace thinwire::launch
