// What data-parallel training holds beyond the weights, in bytes a parameter: two ranks as threads
// of this process, each with a model of about 50 million parameters.
//
//   bench_memory [SPEC [STEPS]]
//
// One spec a process, since what one run gives back another finds warm. Prints one line: the spec,
// what stays after the steps and what was held at most, both by the kernel's account, then what the
// averager itself counts.
#include <malloc.h>

#include <barrier>
#include <cstdio>
#include <fstream>
#include <string>

#include <torch/torch.h>

#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire {
namespace {

constexpr int kRanks = 2;
constexpr std::int64_t kWidth = 1024, kInner = 2048, kLayers = 24;

// A number of /proc/self/status, in bytes.
double memory_of(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field)) return 1024.0 * std::stod(line.substr(field.size() + 1));
  }
  return 0;
}

double resident() {
  malloc_trim(0);
  return memory_of("VmRSS");
}

torch::nn::Sequential make_model() {
  torch::nn::Sequential model;
  for (std::int64_t i = 0; i < kLayers; ++i) {
    model->push_back(i % 2 == 0 ? torch::nn::Linear(kWidth, kInner)
                                : torch::nn::Linear(kInner, kWidth));
  }
  return model;
}

void run(const std::string& spec, int steps) {
  std::barrier meeting(kRanks);
  double before = 0, after = 0, peak = 0, parameters = 0;
  CommunicationSummary summary;
  testing::RankOptions options;
  options.watchdog = std::chrono::minutes(20);
  testing::run_ranks(
      kRanks,
      [&](testing::RankContext& ctx) {
        torch::manual_seed(1);
        torch::nn::Sequential model = make_model();
        const torch::Tensor input = torch::randn({4, kWidth});
        {
          // Everything that a pass loads or keeps anyway.
          torch::NoGradGuard no_grad;
          model->forward(input);
        }
        meeting.arrive_and_wait();
        if (ctx.rank == 0) {
          for (const auto& parameter : model->parameters()) {
            parameters += static_cast<double>(parameter.numel());
          }
          before = resident();
          std::ofstream("/proc/self/clear_refs") << "5";  // the peak counts from here
        }
        meeting.arrive_and_wait();
        DistributedDataParallel<torch::nn::Sequential> ddp(model, ctx.group, {.compression = spec});
        for (int step = 0; step < steps; ++step) {
          // As with PyTorch: gradients are set to none, and the buckets stay.
          ddp.zero_grad();
          ddp.forward(torch::randn({4, kWidth})).pow(2).mean().backward();
        }
        meeting.arrive_and_wait();
        if (ctx.rank == 0) {
          peak = memory_of("VmHWM");
          after = resident();
          summary = ddp.summary();
        }
        meeting.arrive_and_wait();
      },
      options);
  const double count = kRanks * parameters;
  const auto each = [&](std::size_t bytes) { return static_cast<double>(bytes) / parameters; };
  const comm::AveragerMemory& memory = summary.memory;
  std::printf("%-56s %6.2f %6.2f   %6.2f %6.2f %6.2f %6.2f %6.2f\n", spec.c_str(),
              (after - before) / count, (peak - before) / count, each(memory.residuals),
              each(memory.second_residuals), each(memory.momentum),
              each(memory.in_flight + memory.layouts + memory.warm_starts + memory.bases),
              each(summary.statistics_bytes));
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  const std::string spec = argc > 1 ? argv[1] : "none";
  if (spec == "--head") {
    std::printf("%-56s %6s %6s   %6s %6s %6s %6s %6s\n", "# bytes a parameter", "stays", "peak",
                "resid", "second", "moment", "flight", "stats");
    return 0;
  }
  try {
    thinwire::run(spec, argc > 2 ? std::stoi(argv[2]) : 6);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
