// One rank of a job that the tests start: joins it, adds up the ranks, and prints one line of JSON.
#include <iostream>

#include <ATen/ATen.h>

#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/launch/world.h"

namespace {

std::string probe(const thinwire::launch::InitOptions& options) {
  using thinwire::concat;
  const auto world = thinwire::launch::init(options);
  std::vector<at::Tensor> tensors = {at::full({3}, world.rank() + 1, at::kLong)};
  world.group()->allreduce(tensors)->wait();
  return concat("{\"rank\": ", world.rank(), ", \"size\": ", world.size(),
                ", \"local_rank\": ", world.local_rank(), ", \"local_size\": ", world.local_size(),
                ", \"launcher\": \"", name_of(world.ranks().launcher), "\", \"backend\": \"",
                world.backend(), "\", \"hosts\": ", world.hosts().size(), ", \"host\": \"",
                world.host(), "\", \"sum\": ", tensors[0].sum().item<std::int64_t>(), "}\n");
}

}  // namespace

// The only argument is the backend, "auto" where there is none.
int main(int argc, char** argv) {
  try {
    std::cout << probe({.backend = argc > 1 ? argv[1] : "auto"}) << std::flush;
    return 0;
  } catch (const std::exception& error) {
    thinwire::log::error(error.what());
    return 1;
  }
}
