// Saves checkpoints until it is killed: what test_checkpoint_kills.py starts.
//
//   checkpoint_saver DIRECTORY sync|async
//
// Prints "loaded STEP" (0 for none), then "saved STEP" for each step that is on the disk. Exits
// with 1 where what it loaded is not exactly what was saved as that step.
#include <ATen/ops/full.h>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <cstdio>
#include <exception>
#include <string>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/common/error.h"
#include "thinwire/torch_ext/checkpoint/checkpoint.h"

namespace {

// Large enough that a kill often meets a write.
constexpr std::int64_t kElements = 1 << 20;

void save_until_killed(const std::string& directory, bool asynchronous) {
  using namespace thinwire;
  const auto group = comm::make_process_group("gloo", c10::make_intrusive<c10d::HashStore>(), 0, 1,
                                              {.hostname = "127.0.0.1"});
  Checkpoint checkpoint(group, {.directory = directory, .asynchronous = asynchronous});
  at::Tensor value = at::full({kElements}, 0.0);
  checkpoint.add("value", {[&] {
                             return NamedTensors{{"all", value}};
                           },
                           [&](const NamedTensors& saved) { value.copy_(saved.at("all")); }});
  std::int64_t step = checkpoint.load().value_or(0);
  check(value.eq(static_cast<double>(step)).all().item<bool>(), "step ", step,
        " was loaded with other values");
  std::printf("loaded %lld\n", static_cast<long long>(step));
  while (true) {
    value.fill_(static_cast<double>(++step));
    checkpoint.save(step);
    checkpoint.wait();
    std::printf("saved %lld\n", static_cast<long long>(step));
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    thinwire::check(argc == 3, "usage: checkpoint_saver DIRECTORY sync|async");
    save_until_killed(argv[1], argv[2] == std::string("async"));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
