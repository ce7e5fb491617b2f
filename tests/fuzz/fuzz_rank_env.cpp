// What launchers put into the environment: lines NAME=VALUE; and lists of nodes.
#include <map>

#include "thinwire/launch/node_list.h"
#include "thinwire/launch/rank_env.h"
#include "thinwire/tests/fuzz/fuzz_target.h"

using namespace thinwire;  // NOLINT(google-build-using-namespace): a program of one file

std::vector<fuzz::Input> fuzz::seeds() {
  std::vector<Input> all;
  for (const char* text :
       {"RANK=1\nWORLD_SIZE=2\nMASTER_ADDR=127.0.0.1\nMASTER_PORT=29500\nLOCAL_RANK=0\n",
        "OMPI_COMM_WORLD_RANK=0\nOMPI_COMM_WORLD_SIZE=4\nOMPI_COMM_WORLD_LOCAL_RANK=0\n",
        "SLURM_PROCID=3\nSLURM_STEP_NUM_TASKS=8\nSLURM_STEP_NODELIST=n[0-3,7]\nSLURM_JOB_ID=9\n"
        "SLURM_STEP_TASKS_PER_NODE=2(x4)\nSLURM_NODEID=1\nSLURM_LOCALID=1\n",
        "n[001-004,9],gpu-a[1-2]b[3-4],x", "2(x3),1"})
    all.push_back(input_of(text));
  return all;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(fuzz::text_of(data, size));
  std::map<std::string, std::string> variables;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    if (const auto equals = line.find('='); equals != std::string::npos)
      variables[line.substr(0, equals)] = line.substr(equals + 1);
    begin = end + 1;
  }
  fuzz::expect_taken_or_refused([&] {
    launch::read_rank_env([&](const std::string& name) -> std::optional<std::string> {
      const auto found = variables.find(name);
      return found == variables.end() ? std::nullopt : std::optional(found->second);
    });
  });
  fuzz::expect_taken_or_refused([&] { launch::expand_node_list(text); });
  fuzz::expect_taken_or_refused([&] { launch::expand_tasks_per_node(text); });
  return 0;
}
