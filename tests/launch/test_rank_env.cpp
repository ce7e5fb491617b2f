#include "thinwire/launch/rank_env.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "thinwire/common/error.h"

namespace thinwire::launch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

RankEnv read(const Variables& variables) {
  return read_rank_env([&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  });
}

std::string error_of(const Variables& variables) {
  try {
    read(variables);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "no error";
}

// `base` with some variables replaced; an empty value takes one away.
Variables with(Variables base, const Variables& changes) {
  for (const auto& [name, value] : changes) base[name] = value;
  return base;
}

const Variables kTorchrun = {{"RANK", "5"},
                             {"WORLD_SIZE", "8"},
                             {"LOCAL_RANK", "1"},
                             {"LOCAL_WORLD_SIZE", "4"},
                             {"MASTER_ADDR", "n0"},
                             {"MASTER_PORT", "29500"},
                             {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                             {"TORCHELASTIC_RESTART_COUNT", "2"},
                             {"TORCHELASTIC_RUN_ID", "run"}};
const Variables kMpirun = {{"OMPI_COMM_WORLD_RANK", "3"},
                           {"OMPI_COMM_WORLD_SIZE", "4"},
                           {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                           {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}};
const Variables kSlurm = {{"SLURM_PROCID", "4"},
                          {"SLURM_LOCALID", "1"},
                          {"SLURM_NODEID", "1"},
                          {"SLURM_STEP_NUM_TASKS", "5"},
                          {"SLURM_NTASKS", "9"},
                          {"SLURM_STEP_TASKS_PER_NODE", "3,2"},
                          {"SLURM_STEP_NODELIST", "node[03-04]"},
                          {"SLURM_JOB_ID", "1000"},
                          {"SLURM_STEP_ID", "2"}};

TEST(RankEnv, Torchrun) {
  const RankEnv env = read(kTorchrun);
  EXPECT_EQ(env.launcher, Launcher::kTorchrun);
  EXPECT_EQ(env.rank, 5);
  EXPECT_EQ(env.size, 8);
  EXPECT_EQ(env.local_rank, 1);
  EXPECT_EQ(env.local_size, 4);
  EXPECT_EQ(env.master_addr, "n0");
  EXPECT_EQ(env.master_port, 29500);
  EXPECT_TRUE(env.agent_store);
  EXPECT_EQ(env.run_id, "run");
}

TEST(RankEnv, VariablesByHandNeedNoLocalRank) {
  const RankEnv env =
      read({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "n0"}, {"MASTER_PORT", "1234"}});
  EXPECT_EQ(env.launcher, Launcher::kTorchrun);
  EXPECT_EQ(env.local_rank, -1);
  EXPECT_EQ(env.local_size, 0);
  EXPECT_FALSE(env.agent_store);
  EXPECT_EQ(env.run_id, "");
}

TEST(RankEnv, OneRankByHandNeedsNoStore) {
  const RankEnv env = read({{"RANK", "0"}, {"WORLD_SIZE", "1"}});
  EXPECT_EQ(env.size, 1);
  EXPECT_EQ(env.master_addr, "");
}

TEST(RankEnv, Mpirun) {
  const RankEnv env = read(kMpirun);
  EXPECT_EQ(env.launcher, Launcher::kMpirun);
  EXPECT_EQ(env.rank, 3);
  EXPECT_EQ(env.size, 4);
  EXPECT_EQ(env.local_rank, 1);
  EXPECT_EQ(env.local_size, 2);
  EXPECT_EQ(env.master_addr, "");
  EXPECT_EQ(env.master_port, 0);
  const RankEnv by_hand = read(with(kMpirun, {{"MASTER_ADDR", "n0"}, {"MASTER_PORT", "1234"}}));
  EXPECT_EQ(by_hand.master_addr, "n0");
  EXPECT_EQ(by_hand.master_port, 1234);
}

TEST(RankEnv, SlurmPrefersTheStepToTheJob) {
  const RankEnv env = read(kSlurm);
  EXPECT_EQ(env.launcher, Launcher::kSlurm);
  EXPECT_EQ(env.rank, 4);
  EXPECT_EQ(env.size, 5);
  EXPECT_EQ(env.local_rank, 1);
  EXPECT_EQ(env.local_size, 2);
  EXPECT_EQ(env.master_addr, "node03");
  EXPECT_EQ(env.master_port, slurm_port(1000, 2));
  EXPECT_EQ(read(with(kSlurm, {{"SLURM_STEP_NUM_TASKS", ""}})).size, 9);
}

TEST(RankEnv, SlurmTakesAnAddressByHand) {
  const RankEnv env = read(
      with(kSlurm, {{"MASTER_ADDR", "n9"}, {"MASTER_PORT", "1234"}, {"SLURM_STEP_NODELIST", ""}}));
  EXPECT_EQ(env.master_addr, "n9");
  EXPECT_EQ(env.master_port, 1234);
}

TEST(RankEnv, SlurmWithoutTasksPerNodeLeavesTheLocalSizeOpen) {
  EXPECT_EQ(read(with(kSlurm, {{"SLURM_STEP_TASKS_PER_NODE", ""}})).local_size, 0);
}

TEST(RankEnv, ABatchScriptIsNoStep) {
  const Variables script = {
      {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"},           {"SLURM_NTASKS", "4"},
      {"SLURM_JOB_ID", "7"}, {"SLURM_JOB_NODELIST", "n[1-2]"}, {"ENVIRONMENT", "BATCH"}};
  EXPECT_EQ(read(script).launcher, Launcher::kNone);
  // srun inside the script passes ENVIRONMENT on.
  const RankEnv step = read(with(script, {{"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}}));
  EXPECT_EQ(step.launcher, Launcher::kSlurm);
  EXPECT_EQ(step.size, 4);
}

struct OtherLauncher {
  Launcher launcher;
  Variables variables;  // rank 3 of 4, local rank 1 of 2 where it tells
  bool tells_local_rank, tells_local_size;
};
class OtherLaunchers : public ::testing::TestWithParam<OtherLauncher> {};

TEST_P(OtherLaunchers, TellRankAndSize) {
  const RankEnv env = read(GetParam().variables);
  EXPECT_EQ(env.launcher, GetParam().launcher);
  EXPECT_EQ(env.rank, 3);
  EXPECT_EQ(env.size, 4);
  EXPECT_EQ(env.local_rank, GetParam().tells_local_rank ? 1 : -1);
  EXPECT_EQ(env.local_size, GetParam().tells_local_size ? 2 : 0);
  EXPECT_EQ(env.master_addr, "");
  const RankEnv by_hand =
      read(with(GetParam().variables, {{"MASTER_ADDR", "n0"}, {"MASTER_PORT", "1234"}}));
  EXPECT_EQ(by_hand.master_addr, "n0");
  EXPECT_EQ(by_hand.master_port, 1234);
}

INSTANTIATE_TEST_SUITE_P(
    All, OtherLaunchers,
    ::testing::Values(
        OtherLauncher{Launcher::kMpiexec, {{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}}, false, false},
        OtherLauncher{Launcher::kMpiexec,
                      {{"PMI_RANK", "3"},
                       {"PMI_SIZE", "4"},
                       {"PALS_RANKID", "3"},
                       {"MPI_LOCALRANKID", "1"},
                       {"MPI_LOCALNRANKS", "2"}},
                      true,
                      true},
        OtherLauncher{Launcher::kMvapich,
                      {{"MV2_COMM_WORLD_RANK", "3"},
                       {"MV2_COMM_WORLD_SIZE", "4"},
                       {"MV2_COMM_WORLD_LOCAL_RANK", "1"},
                       {"MV2_COMM_WORLD_LOCAL_SIZE", "2"}},
                      true,
                      true},
        OtherLauncher{Launcher::kJsrun,
                      {{"JSM_NAMESPACE_RANK", "3"},
                       {"JSM_NAMESPACE_SIZE", "4"},
                       {"JSM_NAMESPACE_LOCAL_RANK", "1"},
                       {"JSM_NAMESPACE_LOCAL_SIZE", "2"}},
                      true,
                      true},
        OtherLauncher{
            Launcher::kFlux,
            {{"FLUX_TASK_RANK", "3"}, {"FLUX_JOB_SIZE", "4"}, {"FLUX_TASK_LOCAL_ID", "1"}},
            true,
            false}));

// With --mpi=pmi2 both tell the same; what mpiexec starts by srun are its own helpers.
TEST(RankEnv, PmiUnderSlurmIsSrunsWhereItSaysTheSame) {
  EXPECT_EQ(read(with(kSlurm, {{"PMI_RANK", "4"}, {"PMI_SIZE", "5"}})).launcher, Launcher::kSlurm);
  const RankEnv env = read(with(kSlurm, {{"PMI_RANK", "17"}, {"PMI_SIZE", "20"}}));
  EXPECT_EQ(env.launcher, Launcher::kMpiexec);
  EXPECT_EQ(env.rank, 17);
}

TEST(RankEnv, AProgramAloneThatStartedOpenMpiIsAlone) {
  EXPECT_EQ(read({{"PMIX_RANK", "0"}, {"PMIX_NAMESPACE", "1"}, {"OMPI_MCA_ess", "singleton"}}).size,
            1);
}

TEST(RankEnv, NoneIsAJobOfOne) {
  const RankEnv env = read({});
  EXPECT_EQ(env.launcher, Launcher::kNone);
  EXPECT_EQ(env.rank, 0);
  EXPECT_EQ(env.size, 1);
  EXPECT_EQ(env.local_rank, 0);
  EXPECT_EQ(env.local_size, 1);
}

TEST(RankEnv, Precedence) {
  Variables all = kTorchrun;
  all.insert(kMpirun.begin(), kMpirun.end());
  all.insert(kSlurm.begin(), kSlurm.end());
  EXPECT_EQ(read(all).launcher, Launcher::kTorchrun);
  const auto later = with(all, {{"RANK", ""}, {"WORLD_SIZE", ""}});
  EXPECT_EQ(read(later).launcher, Launcher::kMpirun);
  EXPECT_EQ(
      read(with(later, {{"OMPI_COMM_WORLD_RANK", ""}, {"OMPI_COMM_WORLD_SIZE", ""}})).launcher,
      Launcher::kSlurm);
}

struct Contradiction {
  const char* what;
  Variables variables;
  std::vector<std::string> parts;  // of the message
};

class RankEnvContradiction : public ::testing::TestWithParam<Contradiction> {};

TEST_P(RankEnvContradiction, IsRefusedByName) {
  const std::string error = error_of(GetParam().variables);
  for (const auto& part : GetParam().parts) EXPECT_THAT(error, HasSubstr(part));
}

INSTANTIATE_TEST_SUITE_P(
    All, RankEnvContradiction,
    ::testing::Values(
        Contradiction{"RankWithoutSize",
                      with(kTorchrun, {{"WORLD_SIZE", ""}}),
                      {"RANK is set, but WORLD_SIZE is not"}},
        Contradiction{"SizeWithoutRank",
                      {{"WORLD_SIZE", "2"}},
                      {"WORLD_SIZE=2", "without RANK", "no launcher"}},
        Contradiction{
            "RankNotBelowSize", with(kTorchrun, {{"RANK", "8"}}), {"RANK=8", "WORLD_SIZE=8"}},
        Contradiction{"RankNegative", with(kTorchrun, {{"RANK", "-1"}}), {"RANK='-1'", "from 0"}},
        Contradiction{"RankNoNumber", with(kTorchrun, {{"RANK", "1x"}}), {"RANK='1x'"}},
        Contradiction{"RankBlank", with(kTorchrun, {{"RANK", " 1"}}), {"RANK=' 1'"}},
        Contradiction{
            "SizeZero", with(kTorchrun, {{"WORLD_SIZE", "0"}}), {"WORLD_SIZE='0'", "from 1"}},
        Contradiction{"SizeHuge",
                      with(kTorchrun, {{"WORLD_SIZE", "99999999999999999999"}}),
                      {"WORLD_SIZE='99999999999999999999'"}},
        Contradiction{"LocalRankNotBelowLocalSize",
                      with(kTorchrun, {{"LOCAL_RANK", "4"}}),
                      {"LOCAL_RANK=4", "LOCAL_WORLD_SIZE=4"}},
        Contradiction{"LocalSizeAboveSize",
                      with(kTorchrun, {{"LOCAL_WORLD_SIZE", "9"}}),
                      {"LOCAL_WORLD_SIZE=9", "WORLD_SIZE=8"}},
        Contradiction{"AddressWithoutPort",
                      with(kTorchrun, {{"MASTER_PORT", ""}}),
                      {"MASTER_ADDR is set, but MASTER_PORT is not"}},
        Contradiction{"PortWithoutAddress",
                      with(kTorchrun, {{"MASTER_ADDR", ""}}),
                      {"MASTER_PORT is set, but MASTER_ADDR is not"}},
        Contradiction{"NoAddress",
                      with(kTorchrun, {{"MASTER_ADDR", ""}, {"MASTER_PORT", ""}}),
                      {"RANK=5", "MASTER_ADDR and MASTER_PORT are not"}},
        Contradiction{"PortOutOfRange",
                      with(kTorchrun, {{"MASTER_PORT", "65536"}}),
                      {"MASTER_PORT='65536'", "65535"}},
        Contradiction{"AgentStoreNoBool",
                      with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "2"}}),
                      {"TORCHELASTIC_USE_AGENT_STORE='2'", "True or False"}},
        Contradiction{
            "PmiRankWithoutSize", {{"PMI_RANK", "1"}}, {"PMI_RANK is set, but PMI_SIZE is not"}},
        Contradiction{"PmiRankNotBelowSize",
                      {{"PMI_RANK", "4"}, {"PMI_SIZE", "4"}},
                      {"PMI_RANK=4", "PMI_SIZE=4"}},
        Contradiction{"PalsAlone", {{"PALS_RANKID", "0"}}, {"PALS_RANKID=0", "of how many"}},
        Contradiction{"PmixAlone",
                      {{"PMIX_RANK", "2"}, {"PMIX_NAMESPACE", "job"}},
                      {"PMIX_RANK=2", "of how many"}},
        Contradiction{"MpiRankWithoutSize",
                      with(kMpirun, {{"OMPI_COMM_WORLD_SIZE", ""}}),
                      {"OMPI_COMM_WORLD_RANK is set, but OMPI_COMM_WORLD_SIZE is not"}},
        Contradiction{"MpiSizeWithoutRank",
                      with(kMpirun, {{"OMPI_COMM_WORLD_RANK", ""}}),
                      {"OMPI_COMM_WORLD_SIZE is set, but OMPI_COMM_WORLD_RANK is not"}},
        Contradiction{"MpiRankNotBelowSize",
                      with(kMpirun, {{"OMPI_COMM_WORLD_RANK", "4"}}),
                      {"OMPI_COMM_WORLD_RANK=4", "OMPI_COMM_WORLD_SIZE=4"}},
        Contradiction{"MpiLocalRank",
                      with(kMpirun, {{"OMPI_COMM_WORLD_LOCAL_RANK", "2"}}),
                      {"OMPI_COMM_WORLD_LOCAL_RANK=2", "OMPI_COMM_WORLD_LOCAL_SIZE=2"}},
        Contradiction{"MpiLocalSize",
                      with(kMpirun, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "5"}}),
                      {"OMPI_COMM_WORLD_LOCAL_SIZE=5", "OMPI_COMM_WORLD_SIZE=4"}},
        Contradiction{"MpiOtherWorldSize",
                      with(kMpirun, {{"WORLD_SIZE", "2"}}),
                      {"WORLD_SIZE=2", "mpirun started 4"}},
        Contradiction{"SlurmWithoutCount",
                      with(kSlurm, {{"SLURM_STEP_NUM_TASKS", ""}, {"SLURM_NTASKS", ""}}),
                      {"SLURM_PROCID is set, but SLURM_NTASKS is not"}},
        Contradiction{"SlurmRankNotBelowCount",
                      with(kSlurm, {{"SLURM_PROCID", "5"}}),
                      {"SLURM_PROCID=5", "SLURM_STEP_NUM_TASKS=5"}},
        Contradiction{
            "SlurmLocalId", with(kSlurm, {{"SLURM_LOCALID", "2"}}), {"SLURM_LOCALID=2", "=2"}},
        Contradiction{"SlurmNodeId",
                      with(kSlurm, {{"SLURM_NODEID", "2"}}),
                      {"SLURM_NODEID=2", "'3,2'", "2 host(s)"}},
        Contradiction{"SlurmWithoutNodes",
                      with(kSlurm, {{"SLURM_STEP_NODELIST", ""}}),
                      {"SLURM_PROCID=4", "SLURM_STEP_NODELIST is not"}},
        Contradiction{
            "SlurmWithoutJob", with(kSlurm, {{"SLURM_JOB_ID", ""}}), {"SLURM_JOB_ID is not"}},
        Contradiction{
            "SlurmBadNodes", with(kSlurm, {{"SLURM_STEP_NODELIST", "n[1"}}), {"node list 'n[1'"}}),
    [](const auto& tested) { return tested.param.what; });

TEST(SlurmPort, StaysBelowTheEphemeralPortsAndTellsStepsApart) {
  EXPECT_EQ(slurm_port(0, 0), 15000);
  EXPECT_EQ(slurm_port(1000, 2), 15000 + (31 * 1000 + 2) % 15000);
  EXPECT_NE(slurm_port(1000, 2), slurm_port(1000, 3));
  EXPECT_NE(slurm_port(1000, 2), slurm_port(1001, 2));
  EXPECT_LT(slurm_port(0xFFFFFFFFLL, 0xFFFFFFFFLL), 30000);
  EXPECT_GE(slurm_port(0xFFFFFFFFLL, 0xFFFFFFFFLL), 15000);
}

}  // namespace
}  // namespace thinwire::launch
