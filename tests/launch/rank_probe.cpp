// One rank of a job that the tests start: joins it, adds up the ranks in three ways, and prints one
// line of JSON.
#include <cstdlib>
#include <iostream>
#include <locale>

#include <torch/nn/modules/linear.h>
#include <nlohmann/json.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/launch/world.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace {

// As the locales of many languages: "12.345" for 12345.
struct Grouping : std::numpunct<char> {
  char do_thousands_sep() const override { return '.'; }
  char do_decimal_point() const override { return ','; }
  std::string do_grouping() const override { return "\1"; }
};

std::string probe(const thinwire::launch::InitOptions& options) {
  auto world = thinwire::launch::init(options);
  std::vector<at::Tensor> tensors = {at::full({3}, world.rank() + 1, at::kLong)};
  world.group()->allreduce(tensors)->wait();
  world.barrier();
  thinwire::comm::agree_on_text(*world.group(), "probe", "the probe", "1234567");
  const auto parity = world.split(world.rank() % 2);
  std::vector<at::Tensor> ranks = {at::full({1}, world.rank(), at::kLong)};
  parity->allreduce(ranks)->wait();
  const nlohmann::json line = {{"rank", world.rank()},
                               {"size", world.size()},
                               {"local_rank", world.local_rank()},
                               {"local_size", world.local_size()},
                               {"launcher", name_of(world.ranks().launcher)},
                               {"backend", world.backend()},
                               {"hosts", world.hosts().size()},
                               {"host", world.host()},
                               {"sum", tensors[0].sum().item<std::int64_t>()},
                               {"mean", world.all_reduce(world.rank(), c10d::ReduceOp::AVG)},
                               {"largest", world.all_reduce(world.rank(), c10d::ReduceOp::MAX)},
                               {"parity_size", parity->getSize()},
                               {"parity_sum", ranks[0].item<std::int64_t>()}};
  return line.dump() + "\n";
}

// A program that makes its process group itself: launch::init() compares nothing for it.
std::string wrap_a_model() {
  const auto number = [](const char* name) { return std::stoi(std::getenv(name)); };
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(number("MASTER_PORT"));
  options.isServer = number("RANK") == 0;
  options.waitWorkers = false;
  const auto group = thinwire::comm::make_process_group(
      "gloo", c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options), number("RANK"),
      number("WORLD_SIZE"), {.timeout = std::chrono::seconds(30), .hostname = "127.0.0.1"});
  torch::nn::Linear model(3, 2);
  const thinwire::DistributedDataParallel ddp(model, group);
  return "wrapped\n";
}

}  // namespace

// Arguments: the backend, "auto" where there is none; then "grouping" for a locale that groups
// digits. Or "ddp".
int main(int argc, char** argv) {
  try {
    if (argc > 2 && std::string(argv[2]) == "grouping")
      std::locale::global(std::locale(std::locale(), new Grouping));
    if (argc > 1 && std::string(argv[1]) == "ddp") {
      std::cout << wrap_a_model() << std::flush;
      return 0;
    }
    std::cout << probe({.backend = argc > 1 ? argv[1] : "auto"}) << std::flush;
    return 0;
  } catch (const std::exception& error) {
    thinwire::log::error(error.what());
    return 1;
  }
}
