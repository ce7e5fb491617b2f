// Who is named when ranks fail: threads as ranks, over Gloo.
#include "thinwire/comm/failure/failure.h"

#include <ATen/ATen.h>
#include <c10/util/ScopeExit.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <set>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/roll_call.h"
#include "thinwire/comm/failure/watched_group.h"
#include "thinwire/tests/support/rank_errors.h"

namespace thinwire::comm {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::Each;
using testing::errors_of;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::RankContext;
using testing::run_ranks;
using Tensors = std::vector<at::Tensor>;

// Comes back when `count` threads have come.
class Gate {
 public:
  explicit Gate(int count) : missing_(count) {}
  void pass() {
    --missing_;
    while (missing_ > 0) std::this_thread::sleep_for(milliseconds(1));
  }

 private:
  std::atomic<int> missing_;
};

void all_reduce(c10d::ProcessGroup& group, milliseconds timeout = std::chrono::seconds(5)) {
  Tensors tensors = {at::ones({1000})};
  c10d::AllreduceOptions options;
  options.timeout = timeout;
  wait(group, group.allreduce(tensors, options), "the sum", 7);
}

// What the survivors say where the ranks of `lost` leave (or, if they hang, stay and do nothing).
std::vector<std::string> errors_without(int world, const std::set<int>& lost, bool hang) {
  Gate all(world), end(world);
  auto errors = errors_of<CommError>(world, [&](RankContext& ctx) {
    if (lost.contains(ctx.rank)) {
      if (!hang) ctx.group.reset();
      all.pass();
      end.pass();
      return;
    }
    all.pass();
    try {
      all_reduce(*ctx.group, milliseconds(hang ? 700 : 5000));
    } catch (...) {
      end.pass();
      throw;
    }
    end.pass();
  });
  EXPECT_EQ(std::erase(errors, "no error"), lost.size());
  return errors;
}

TEST(Failure, ADeadRankIsNamedByAllSurvivors) {
  EXPECT_THAT(errors_without(4, {2}, false),
              Each(AllOf(HasSubstr("the sum #7 failed, rank 2 is at fault"),
                         HasSubstr("rank(s) 2 of 4 are dead or hung"))));
}

TEST(Failure, TwoDeadRanksAreNamed) {
  EXPECT_THAT(errors_without(4, {0, 3}, false),
              Each(HasSubstr("rank(s) 0, 3 of 4 are dead or hung")));
}

TEST(Failure, AHungRankIsNamed) {
  EXPECT_THAT(errors_without(3, {1}, true), Each(HasSubstr("rank(s) 1 of 3 are dead or hung")));
}

TEST(Failure, ANamedErrorOfOneRankIsThatOfAll) {
  const auto errors = errors_of<FrameError>(3, [&](RankContext& ctx) {
    if (ctx.rank != 1) return all_reduce(*ctx.group);
    raise_collective_failure(*ctx.group, "decoding", 3,
                             std::make_exception_ptr(FrameError("damaged in transit")));
  });
  EXPECT_THAT(errors, Each("damaged in transit"));
}

// Callers need not know whether what they catch was told to the others already.
// See Note [One answer]: else the second answer would wait for one of the other rank's.
TEST(Failure, ThreadsThatFailTogetherHaveOneError) {
  std::vector<std::string> of_second(2);
  const auto errors = errors_of<CommError>(2, [&](RankContext& ctx) {
    const std::uint64_t since = failures_answered();
    const auto fail = [&] {
      raise_collective_failure(*ctx.group, "decoding", 3,
                               std::make_exception_ptr(InternalError("a broken rule")), since);
    };
    std::thread second([&] {
      try {
        fail();
      } catch (const CommError& error) {
        of_second[static_cast<std::size_t>(ctx.rank)] = error.what();
      }
    });
    const auto join = c10::make_scope_exit([&] { second.join(); });
    fail();
  });
  EXPECT_THAT(errors, Each(HasSubstr("reports: a broken rule")));
  EXPECT_EQ(of_second, errors);
}

TEST(Failure, IsToldOnceHoweverOftenItIsCaught) {
  const auto errors = errors_of<CommError>(2, [&](RankContext& ctx) {
    const auto copy = duplicate(ctx.group, "copy");
    try {
      if (ctx.rank == 0) all_reduce(*ctx.group);
      raise_collective_failure(*ctx.group, "decoding", 3,
                               std::make_exception_ptr(InternalError("a broken rule")));
    } catch (...) {
      raise_collective_failure(*copy, "the step", 4, std::current_exception());
    }
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("rank 1 is at fault: rank 1 reports: a broken rule"),
                                 Not(HasSubstr("the step")))));
}

// Rank 0 fails in an exchange on the duplicate; the others wait for it in the original.
TEST(Failure, OfADuplicateIsOneOfTheOriginal) {
  const auto errors = errors_of<FrameError>(3, [&](RankContext& ctx) {
    const auto copy = duplicate(duplicate(ctx.group, "copy"), "copy of the copy");
    if (ctx.rank != 0) return all_reduce(*ctx.group);
    raise_collective_failure(*copy, "decoding", 0,
                             std::make_exception_ptr(FrameError("damaged in transit")));
  });
  EXPECT_THAT(errors, Each("damaged in transit"));
}

// Gloo matches what has one order, whatever it is, or waits for ever: only the ranks together can
// say that they do different things.
TEST(Failure, OfRanksThatDoDifferentThingsNamesWhatEachDoes) {
  const auto errors = errors_of<CommError>(
      3,
      [&](RankContext& ctx) {
        Tensors tensors = {at::ones({1000})};
        c10d::AllreduceOptions options;
        options.timeout = milliseconds(500);
        if (ctx.rank != 1)
          return wait(*ctx.group, ctx.group->allreduce(tensors, options), "the sum", 7);
        // Has gone on to something that nobody else does.
        wait(*ctx.group, ctx.group->recv(tensors, 0, 5), "the experts", 2);
      },
      {.timeout = milliseconds(500)});
  EXPECT_THAT(errors,
              Each(AllOf(HasSubstr("every rank is alive"),
                         HasSubstr("wait for each other in different operations: rank 1 in the "
                                   "experts #2, ranks 0, 2 in the sum #7"))));
}

TEST(WatchedGroup, BehavesAsItsGroup) {
  run_ranks(2, [&](RankContext& ctx) {
    const auto group = watched(ctx.group);
    EXPECT_EQ(group->getRank(), ctx.rank);
    EXPECT_EQ(group->getSize(), 2);
    // c10d's Logger would take what calls itself Gloo for a ProcessGroupGloo.
    EXPECT_EQ(group->getBackendName(), "custom");
    Tensors tensors = {at::full({3}, ctx.rank + 1.0F)};
    const auto work = group->broadcast(tensors);
    EXPECT_TRUE(work->wait());
    EXPECT_TRUE(work->isCompleted());
    EXPECT_TRUE(at::equal(tensors[0], at::full({3}, 1.0F)));
    group->allreduce(tensors)->wait();
    EXPECT_TRUE(at::equal(tensors[0], at::full({3}, 2.0F)));
  });
}

TEST(WatchedGroup, WaitLearnsOfAFailureElsewhere) {
  const auto errors = errors_of<InvalidArgument>(3, [&](RankContext& ctx) {
    const auto group = watched(ctx.group);
    Tensors tensors = {at::ones({3})};
    if (ctx.rank != 0) {
      group->broadcast(tensors)->wait();
      return;
    }
    raise_collective_failure(*ctx.group, "the step", 0,
                             std::make_exception_ptr(InvalidArgument("rank 0 objects")));
  });
  EXPECT_THAT(errors, Each("rank 0 objects"));
}

TEST(AgreeOnText, NamesARankThatDoesNotCome) {
  Gate end(3);
  auto errors = errors_of<CommError>(3,
                                     [&](RankContext& ctx) {
                                       if (ctx.rank == 1) return end.pass();
                                       try {
                                         agree_on_text(*ctx.group, "key", "the colours", "red");
                                       } catch (...) {
                                         end.pass();
                                         throw;
                                       }
                                     },
                                     {.timeout = std::chrono::seconds(3)});
  EXPECT_EQ(std::erase(errors, "no error"), 1u);
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("comparing the colours #0 failed, rank 1 is at fault"),
                                 HasSubstr("rank(s) 1 of 3"))));
}

TEST(AgreeOnText, NamesTheFirstDifference) {
  const auto errors = errors_of<InvalidArgument>(3, [&](RankContext& ctx) {
    agree_on_text(*ctx.group, "key", "the colours", ctx.rank == 2 ? "red\nblue" : "red\ngreen");
  });
  EXPECT_THAT(errors, Each("the ranks disagree on the colours: line 2 is 'green' on rank 0 and "
                           "'blue' on rank 2"));
}

TEST(AgreeOnText, OfAnySizeComparesTheFirstRankThatDiffers) {
  const std::string model(1 << 20, 'x');
  const auto errors = errors_of<InvalidArgument>(4, [&](RankContext& ctx) {
    agree_on_text(*ctx.group, "equal", "the model", model);
    agree_on_text(*ctx.group, "key", "the model",
                  concat(model, "\nrank ", ctx.rank >= 2 ? ctx.rank : 0));
  });
  EXPECT_THAT(errors, Each("the ranks disagree on the model: line 2 is 'rank 0' on rank 0 and "
                           "'rank 2' on rank 2"));
}

// Rank 2 fails before the others have come, and they learn of it at once.
TEST(AgreeOnResult, TheMistakeOfOneRankIsThatOfAll) {
  for (const bool late : {false, true}) {
    const auto begin = std::chrono::steady_clock::now();
    const auto errors = errors_of<InvalidArgument>(3, [&](RankContext& ctx) {
      if (ctx.rank == 2 && late) std::this_thread::sleep_for(milliseconds(100));
      agree_on_result(*ctx.group, "key", "the file", [&]() -> std::string {
        if (ctx.rank == 2) throw FileError("weights.bin is cut off");
        return "weights";
      });
    });
    EXPECT_THAT(errors, Each("rank 2: weights.bin is cut off"));
    // Long before the timeout of a minute.
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  }
}

TEST(AgreeOnResult, TellsNothingOfTorchsStackTrace) {
  const auto errors = errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
    agree_on_result(*ctx.group, "key", "the model", [&]() -> std::string {
      TORCH_CHECK(ctx.rank != 1, "no such module");
      return "a model";
    });
  });
  EXPECT_THAT(errors, Each("rank 1: no such module"));
}

TEST(AgreeOnResult, OfOneRankThrowsItsOwnError) {
  run_ranks(1, [](RankContext& ctx) {
    EXPECT_THROW(agree_on_result(*ctx.group, "key", "the file",
                                 []() -> std::string { throw FileError("no"); }),
                 FileError);
  });
}

TEST(RollCall, ListsWhoPostedAndWhoIsSilent) {
  run_ranks(3,
            [&](RankContext& ctx) {
              if (ctx.rank == 1) return;
              if (ctx.rank == 0) {
                EXPECT_FALSE(failure_was_posted(*c10::make_intrusive<c10d::HashStore>()));
              }
              for (int round = 0; round < 2; ++round) {
                FailureReport mine;
                mine.kind = FailureReport::Kind::kOther;
                mine.rank = ctx.rank;
                mine.operation = concat("step ", ctx.rank);
                mine.text = concat("round ", round, "\nof rank ", ctx.rank);
                const RollCall roll = call_roll(ctx.store, mine, 3, milliseconds(1000));
                EXPECT_FALSE(roll.store_is_gone);
                EXPECT_THAT(roll.silent, ::testing::ElementsAre(1));
                ASSERT_EQ(roll.reports.size(), 2u);
                EXPECT_NE(roll.reports[0].rank, roll.reports[1].rank);
                for (const FailureReport& report : roll.reports) {
                  EXPECT_EQ(report.kind, FailureReport::Kind::kOther);
                  EXPECT_EQ(report.operation, concat("step ", report.rank));
                  EXPECT_EQ(report.text, concat("round ", round, "\nof rank ", report.rank));
                }
              }
              EXPECT_TRUE(failure_was_posted(*ctx.store));
              EXPECT_FALSE(failure_is_posted(ctx.store, ctx.rank));
              EXPECT_TRUE(failure_is_posted(ctx.store, 1));
            },
            {.make_group = false});
}

// One of the dead has posted before it died; both survivors say so.
TEST(RollCall, DoesNotWaitForTheDead) {
  run_ranks(4,
            [&](RankContext& ctx) {
              FailureReport mine;
              mine.rank = ctx.rank;
              if (ctx.rank == 3) return;
              if (ctx.rank == 2) return post_report(*ctx.store, mine);
              post_death(*ctx.store, 2);
              post_death(*ctx.store, 3);
              const RollCall roll = call_roll(ctx.store, mine, 4, std::chrono::minutes(5));
              EXPECT_THAT(roll.silent, ::testing::IsSubsetOf({2, 3}));
              EXPECT_THAT(roll.silent, ::testing::Contains(3));
              EXPECT_GE(roll.reports.size(), 2u);
            },
            {.watchdog = std::chrono::seconds(30), .make_group = false});
}

}  // namespace
}  // namespace thinwire::comm
