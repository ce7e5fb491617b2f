#include "thinwire/launch/enrolment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "thinwire/tests/support/counting_store.h"

#include "thinwire/common/error.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::launch {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using thinwire::testing::error_of;

// One process of a job: the rank that it claims, and what it tells.
struct Process {
  int rank;
  Enrolment enrolment;
};

struct Outcome {
  std::vector<Enrolment> members;
  std::string mistake;  // text of an InvalidArgument
  std::string failure;  // text of a CommError
  int failed_rank = -2;
};

// A thread for each process, all over one store.
std::vector<Outcome> enrol_all(const std::vector<Process>& processes,
                               milliseconds timeout = milliseconds(20000)) {
  const auto store = c10::make_intrusive<thinwire::testing::CountingStore>();
  std::vector<Outcome> outcomes(processes.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < processes.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        outcomes[i].members = enrol(store, processes[i].rank, processes[i].enrolment, timeout);
      } catch (const InvalidArgument& error) {
        outcomes[i].mistake = error.what();
      } catch (const CommError& error) {
        outcomes[i].failure = error.what();
        outcomes[i].failed_rank = error.rank();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return outcomes;
}

Enrolment member_of(int size, const std::string& host = "n0") {
  return {.size = size, .host = host, .backend = "auto"};
}

std::vector<std::string> mistakes_of(const std::vector<Process>& processes) {
  std::vector<std::string> texts;
  for (const auto& outcome : enrol_all(processes)) texts.push_back(outcome.mistake);
  return texts;
}

TEST(Enrolment, everybody_learns_of_everybody) {
  std::vector<Process> processes;
  for (int rank = 3; rank >= 0; --rank) {
    processes.push_back({rank, member_of(4, concat("host \"", rank, "\"\n"))});
    processes.back().enrolment.gpus = rank;
    processes.back().enrolment.has_mpi = rank % 2 == 0;
    processes.back().enrolment.visible_devices = concat(rank, ",7");
    processes.back().enrolment.local_rank = rank - 1;
  }
  for (const auto& outcome : enrol_all(processes)) {
    ASSERT_EQ(outcome.members.size(), 4u) << outcome.mistake << outcome.failure;
    for (int rank = 0; rank < 4; ++rank) {
      const Enrolment& member = outcome.members[static_cast<std::size_t>(rank)];
      EXPECT_EQ(member.host, concat("host \"", rank, "\"\n"));
      EXPECT_EQ(member.gpus, rank);
      EXPECT_EQ(member.has_mpi, rank % 2 == 0);
      EXPECT_EQ(member.visible_devices, concat(rank, ",7"));
      EXPECT_EQ(member.local_rank, rank - 1);
      EXPECT_EQ(member.backend, "auto");
      EXPECT_EQ(member.size, 4);
    }
  }
}

TEST(Enrolment, two_processes_of_one_rank) {
  const auto texts = mistakes_of({{0, member_of(3)}, {1, member_of(3)}, {1, member_of(3)}});
  EXPECT_THAT(texts, Each(HasSubstr("two processes claim rank 1 of 3")));
}

TEST(Enrolment, disagreement_on_the_size) {
  const auto texts = mistakes_of({{0, member_of(2)}, {1, member_of(3)}});
  EXPECT_THAT(texts, Each(AllOf(HasSubstr("disagree on the size"), HasSubstr("told 2"),
                                HasSubstr("told 3"), HasSubstr("WORLD_SIZE"))));
  EXPECT_EQ(texts[0], texts[1]);
}

TEST(Enrolment, disagreement_on_the_backend) {
  auto other = member_of(2);
  other.backend = "mpi";
  const auto texts = mistakes_of({{0, member_of(2)}, {1, other}});
  EXPECT_THAT(texts, Each(AllOf(HasSubstr("disagree on the backend"), HasSubstr("'auto'"),
                                HasSubstr("'mpi'"))));
}

TEST(Enrolment, disagreement_on_a_setting) {
  std::vector<Process> processes;
  for (int rank = 0; rank < 3; ++rank) {
    processes.push_back({rank, member_of(3)});
    processes.back().enrolment.settings = {{"the colour", "red"},
                                           {"the size", rank == 2 ? "large" : "small"}};
  }
  EXPECT_THAT(mistakes_of(processes),
              Each(AllOf(HasSubstr("the ranks disagree on the size"),
                         HasSubstr("rank 2 has 'large'"), HasSubstr("has 'small'"))));
}

TEST(Enrolment, more_processes_than_ranks) {
  const auto store = c10::make_intrusive<thinwire::testing::CountingStore>();
  EXPECT_EQ(enrol(store, 0, member_of(1), milliseconds(1000)).size(), 1u);
  EXPECT_THAT(error_of([&] { enrol(store, 0, member_of(1), milliseconds(1000)); }),
              HasSubstr("more processes than the 1 of the job"));
}

// What a rank asks of the store and is told does not grow with the ranks of a host.
TEST(Enrolment, costs_each_rank_a_few_requests_whatever_their_number) {
  for (const int ranks : {2, 16, 64, 256}) {
    const auto store = c10::make_intrusive<thinwire::testing::CountingStore>();
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; ++rank) {
      threads.emplace_back([&, rank] {
        auto mine = member_of(ranks, concat("node", std::to_string(rank / 8)));
        mine.local_rank = rank % 8;
        const auto members = enrol(store, rank, mine, milliseconds(60000));
        ASSERT_EQ(members.size(), static_cast<std::size_t>(ranks));
        EXPECT_EQ(members.back().local_rank, (ranks - 1) % 8);
        EXPECT_EQ(members.back().host, concat("node", std::to_string((ranks - 1) / 8)));
      });
    }
    for (auto& thread : threads) thread.join();
    ::testing::Test::RecordProperty(concat("requests_of_", ranks), concat(store->requests()));
    ::testing::Test::RecordProperty(concat("bytes_of_", ranks), concat(store->bytes()));
    EXPECT_LE(store->requests(), 6 * ranks + 5);
    EXPECT_LE(store->bytes(), ranks * (1200 + 160 * ((ranks + 7) / 8)));
  }
}

TEST(Enrolment, problem_of_one_rank_ends_all) {
  auto ailing = member_of(4);
  ailing.problem = "its cable is out";
  ailing.backend = "";  // which must not count as a disagreement
  const auto texts =
      mistakes_of({{0, member_of(4)}, {1, member_of(4)}, {2, ailing}, {3, member_of(4)}});
  EXPECT_THAT(texts, Each("rank 2: its cable is out"));
}

TEST(Enrolment, a_rank_that_comes_late_still_learns_why) {
  const auto store = c10::make_intrusive<thinwire::testing::CountingStore>();
  std::atomic<bool> late = false;
  std::thread early([&] {
    auto ailing = member_of(2);
    ailing.problem = "its cable is out";
    EXPECT_THROW(enrol(store, 0, ailing, milliseconds(60000)), InvalidArgument);
    EXPECT_TRUE(late) << "rank 0 left before rank 1 came";
  });
  // Rank 0 has said why and could go.
  while (store->add("left", 0) == 0) std::this_thread::sleep_for(milliseconds(1));
  std::this_thread::sleep_for(milliseconds(100));
  late = true;
  EXPECT_THAT(error_of([&] { enrol(store, 1, member_of(2), milliseconds(60000)); }),
              HasSubstr("rank 0: its cable is out"));
  early.join();
}

TEST(Enrolment, ranks_that_do_not_come_are_named) {
  for (const auto& outcome : enrol_all({{0, member_of(4)}, {2, member_of(4)}}, milliseconds(200))) {
    EXPECT_EQ(outcome.failed_rank, 1);
    EXPECT_THAT(outcome.failure, HasSubstr("ranks 1, 3 of 4 did not come within 0.2 s"));
  }
}

TEST(Enrolment, local_ranks_are_counted_by_host) {
  std::vector<Enrolment> members = {member_of(5, "a"), member_of(5, "b"), member_of(5, "a"),
                                    member_of(5, "b"), member_of(5, "a")};
  RankEnv env;
  env.rank = 4;
  env.size = 5;
  env.local_rank = -1;
  env.local_size = 0;
  complete_local_ranks(env, members);
  EXPECT_EQ(env.local_rank, 2);
  EXPECT_EQ(env.local_size, 3);
  std::vector<int> counted;
  for (const auto& member : members) counted.push_back(member.local_rank);
  EXPECT_THAT(counted, ::testing::ElementsAre(0, 0, 1, 1, 2));
}

TEST(Enrolment, local_rank_of_the_launcher_is_kept) {
  std::vector<Enrolment> members = {member_of(2), member_of(2)};
  members[0].local_rank = 1;
  members[1].local_rank = 0;
  RankEnv env;
  env.rank = 1;
  env.size = 2;
  env.local_rank = 0;
  env.local_size = 2;
  complete_local_ranks(env, members);
  EXPECT_EQ(env.local_rank, 0);
  EXPECT_EQ(members[0].local_rank, 1);
}

// Members on one host, local ranks in order.
std::vector<Enrolment> members_with(const std::vector<int>& gpus, bool has_mpi = false) {
  std::vector<Enrolment> members;
  for (const int count : gpus) {
    members.push_back(member_of(static_cast<int>(gpus.size())));
    members.back().local_rank = static_cast<int>(members.size()) - 1;
    members.back().gpus = count;
    members.back().has_mpi = has_mpi;
  }
  return members;
}

TEST(ChooseBackend, wish_wins) {
  auto members = members_with({2, 2}, true);
  for (auto& member : members) member.backend = "gloo";
  EXPECT_EQ(choose_backend(members, Launcher::kMpirun), "gloo");
}

TEST(ChooseBackend, mpi_under_any_launcher_of_mpi) {
  EXPECT_EQ(choose_backend(members_with({0, 0}, true), Launcher::kMpiexec), "mpi");
  EXPECT_EQ(choose_backend(members_with({0, 0}, true), Launcher::kFlux), "gloo");
}

TEST(ChooseBackend, mpi_under_srun_where_it_tells_mpi_of_the_others) {
  EXPECT_EQ(choose_backend(members_with({0, 0}, true), Launcher::kSlurm), "mpi");
  EXPECT_EQ(choose_backend(members_with({0, 0}, false), Launcher::kSlurm), "gloo");
}

TEST(ChooseBackend, mpi_under_mpirun_where_all_have_it) {
  auto members = members_with({0, 0}, true);
  EXPECT_EQ(choose_backend(members, Launcher::kMpirun), "mpi");
  EXPECT_EQ(choose_backend(members, Launcher::kTorchrun), "gloo");
  members[1].has_mpi = false;
  EXPECT_EQ(choose_backend(members, Launcher::kMpirun), "gloo");
}

// Its group would have no CPU collectives, and averaging has no others.
TEST(ChooseBackend, nccl_only_where_asked_for) {
  auto members = members_with({2, 2}, true);
  EXPECT_EQ(choose_backend(members, Launcher::kTorchrun), "gloo");
  EXPECT_EQ(choose_backend(members, Launcher::kMpirun), "mpi");
  for (auto& member : members) member.backend = "nccl";
  EXPECT_EQ(choose_backend(members, Launcher::kMpirun), "nccl");
}

TEST(ChooseBackend, device_of_a_rank) {
  const auto members = members_with({2, 2, 2, 1, 0});
  EXPECT_EQ(cuda_device_of(members[0]), 0);
  EXPECT_EQ(cuda_device_of(members[1]), 1);
  EXPECT_EQ(cuda_device_of(members[2]), -1);
  EXPECT_EQ(cuda_device_of(members[3]), 0);
  EXPECT_EQ(cuda_device_of(members[4]), -1);
}

}  // namespace
}  // namespace thinwire::launch
