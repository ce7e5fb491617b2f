#include "thinwire/comm/join/store_meeting.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/join/host_layout.h"
#include "thinwire/comm/join/meet.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/support/counting_store.h"

namespace thinwire::comm {
namespace {

using ::testing::ElementsAre;
using thinwire::testing::CountingStore;

// `ranks` threads, each a rank.
void on_threads(int ranks, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

void pause() {
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

TEST(StoreLog, KeepsWhateverIsAppended) {
  CountingStore store;
  StoreLog log(store, "log");
  EXPECT_FALSE(log.exists());
  EXPECT_TRUE(log.read().empty());
  const std::string odd("2 3:\n\0x", 7);
  EXPECT_EQ(log.append(7, odd), 1);
  EXPECT_EQ(log.append(0, ""), 2);
  EXPECT_EQ(log.count(), 2);
  const auto entries = log.read();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].rank, 7);
  EXPECT_EQ(entries[0].text, odd);
  EXPECT_EQ(entries[1].rank, 0);
  EXPECT_EQ(entries[1].text, "");
  log.remove();
  EXPECT_EQ(store.getNumKeys(), 0);
}

TEST(StoreLog, RefusesWhatIsNone) {
  for (const std::string text : {"x", "1", "1 ", "1 2", "1 2:a", "1 99999999999999999999:a"}) {
    CountingStore store;
    store.set("log/log", text);
    EXPECT_THROW(StoreLog(store, "log").read(), FrameError) << text;
  }
}

TEST(StoreMeeting, TheOutcomeOfAllWordsIsThatOfEveryRankAndNothingStays) {
  CountingStore store;
  std::array<std::string, 5> outcomes;
  on_threads(5, [&](int rank) {
    StoreMeeting meeting(store, "colours", rank, 5);
    outcomes[static_cast<std::size_t>(rank)] = meeting.attend(
        std::to_string(rank * rank),
        [](const std::vector<LogEntry>& words) {
          int sum = 0;
          for (const LogEntry& word : words) sum += std::stoi(word.text);
          return std::to_string(sum);
        },
        pause);
    meeting.leave();
  });
  EXPECT_THAT(outcomes, ::testing::Each("30"));
  EXPECT_EQ(store.getNumKeys(), 0);
}

TEST(StoreMeeting, WhoEndsItIsHeardByThoseWhoWaitAndThoseWhoComeLater) {
  CountingStore store;
  std::array<std::string, 3> outcomes;
  on_threads(3, [&](int rank) {
    StoreMeeting meeting(store, "colours", rank, 3);
    std::string& outcome = outcomes[static_cast<std::size_t>(rank)];
    if (rank == 1) {
      // Once rank 0 waits.
      while (meeting.absent().size() == 3) pause();
      outcome = meeting.end("no colour left");
      EXPECT_EQ(meeting.end("too late"), "no colour left");
      return;
    }
    if (rank == 2)
      while (!meeting.is_over()) pause();
    outcome = meeting.attend(
        "red", [](const auto&) { return "all came"; }, pause);
  });
  EXPECT_THAT(outcomes, ::testing::Each("no colour left"));
}

// Its process often hosts the store: were it gone, the others could not read what they agreed on.
TEST(StoreMeeting, RankZeroStaysUntilTheOthersHaveLeft) {
  CountingStore store;
  std::atomic<int> left = 0;
  on_threads(3, [&](int rank) {
    StoreMeeting meeting(store, "colours", rank, 3);
    meeting.attend(
        "red", [](const auto&) { return "all came"; }, pause);
    if (rank == 0) {
      meeting.leave();
      EXPECT_EQ(left, 2);
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20 * rank));
    ++left;
    meeting.leave();
  });
  EXPECT_EQ(store.getNumKeys(), 0);
}

TEST(StoreMeeting, RankZeroDoesNotStayForOneThatDied) {
  CountingStore store;
  StoreMeeting meeting(store, "colours", 0, 2);
  EXPECT_EQ(meeting.end("no colour left"), "no colour left");
  meeting.leave(std::chrono::milliseconds(5));
  EXPECT_TRUE(meeting.is_over());
}

TEST(StoreMeeting, KnowsWhoIsAbsent) {
  CountingStore store;
  EXPECT_THAT(StoreMeeting(store, "colours", 0, 3).absent(), ElementsAre(0, 1, 2));
  EXPECT_THROW(StoreMeeting(store, "colours", 2, 3)
                   .attend(
                       "red", [](const auto&) { return ""; }, [] { throw FrameError(""); }),
               FrameError);
  EXPECT_THAT(StoreMeeting(store, "colours", 0, 3).absent(), ElementsAre(0, 1));
}

struct Cost {
  std::int64_t requests, bytes, keys;
};

// What a job asks of its store before the first step: a process group and its duplicate, the model
// of 500 tensors and three more agreements, the layout of the hosts.
Cost cost_of_a_start(int ranks) {
  const auto store = c10::make_intrusive<CountingStore>();
  std::string model;
  for (int layer = 0; layer < 500; ++layer)
    model += concat("encoder.layers.", layer, ".self_attn.out_proj.weight float [1024, 1024]\n");
  on_threads(ranks, [&](int rank) {
    const auto prefix = c10::make_intrusive<c10d::PrefixStore>("group", store);
    const auto group = c10::make_intrusive<c10d::ProcessGroup>(prefix, rank, ranks);
    meet(prefix, rank, ranks, "gloo", std::chrono::seconds(60));
    meet(c10::make_intrusive<c10d::PrefixStore>("copy", prefix), rank, ranks, "gloo",
         std::chrono::seconds(60));
    agree_on_text(*group, "model", "the model", model);
    for (const char* key : {"policy", "link model", "settings"})
      agree_on_result(*group, key, key, [] { return "the same everywhere"; });
    EXPECT_EQ(hosts_of_ranks(*group, "start", concat("node", rank / 8)),
              hosts_of_ranks(*group, "again", concat("n", rank / 8)));
  });
  ::testing::Test::RecordProperty(concat("looks_of_", ranks), concat(store->looks()));
  return {store->requests(), store->bytes(), store->getNumKeys()};
}

TEST(StartUp, CostsEachRankAFewSmallRequestsWhateverTheirNumber) {
  for (const int ranks : {2, 16, 64, 256}) {
    const Cost cost = cost_of_a_start(ranks);
    ::testing::Test::RecordProperty(concat("requests_of_", ranks), concat(cost.requests));
    ::testing::Test::RecordProperty(concat("bytes_of_", ranks), concat(cost.bytes));
    // Eight meetings of four requests a rank, two more for each group; eight logs read by rank 0
    // and eight sets of keys deleted.
    EXPECT_LE(cost.requests, ranks * (8 * 4 + 2 * 2) + 8 * 5) << ranks;
    EXPECT_LE(cost.bytes, ranks * 2800 + 1000) << ranks;
    // What a group was made of, and how many came: twice; and how often a rank has failed, where it
    // waited long enough to ask.
    EXPECT_LE(cost.keys, 4 + ranks);
  }
}

}  // namespace
}  // namespace thinwire::comm
