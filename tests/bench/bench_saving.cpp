// What saving checkpoints takes from training: two ranks as threads, each with a model of about
// four million parameters and momentum, which saves once in a round of steps.
//
//   bench_saving [ROUNDS [STEPS [FOLDER]]]
//
// Rounds without saving, with asynchronous and with synchronous saving take turns. Prints for each
// the median milliseconds of a step, of a call of save(), and of the longest step of a round
// (save() included), and how much longer than without saving a round takes, in percent. FOLDER:
// where the files go, by default the folder for temporary files.
#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <vector>

#include <torch/torch.h>

#include "thinwire/common/median.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/torch_ext/checkpoint/checkpoint.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire {
namespace {

constexpr int kWorld = 2;
constexpr std::int64_t kWidth = 1024, kLayers = 4, kBatch = 64;

struct Times {
  std::vector<double> steps, saves, longest, rounds;  // milliseconds
};

void run(int rounds, int steps, const std::filesystem::path& folder) {
  std::barrier meeting(kWorld);
  Times times[3];
  testing::RankOptions options;
  options.watchdog = std::chrono::minutes(20);
  const auto train = [&](testing::RankContext& ctx) {
    torch::manual_seed(1);
    torch::nn::Sequential model;
    for (std::int64_t i = 0; i < kLayers; ++i) model->push_back(torch::nn::Linear(kWidth, kWidth));
    DistributedDataParallel<torch::nn::Sequential> ddp(model, ctx.group,
                                                       {.compression = "quantize(bits=4)"});
    torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(1e-3).momentum(0.9));
    const auto checkpoint_of = [&](bool asynchronous) {
      auto checkpoint = std::make_unique<Checkpoint>(
          ctx.group, CheckpointOptions{.directory = folder / (asynchronous ? "later" : "now"),
                                       .asynchronous = asynchronous});
      checkpoint->add("model", *model);
      checkpoint->add("optimizer", optimizer);
      checkpoint->add("gradients", ddp);
      return checkpoint;
    };
    const auto later = checkpoint_of(true), now = checkpoint_of(false);
    const torch::Tensor input = torch::randn({kBatch, kWidth});
    std::int64_t step = 0;
    for (int round = -1; round < rounds; ++round) {
      for (int turn = 0; turn < 3; ++turn) {
        const int mode = (turn + round + 1) % 3;
        meeting.arrive_and_wait();
        const auto round_begins = Clock::now();
        double save_ms = 0, longest = 0;
        std::vector<double> plain;
        for (int i = 0; i < steps; ++i) {
          const auto step_begins = Clock::now();
          ddp.zero_grad();
          ddp.forward(input).pow(2).mean().backward();
          optimizer.step();
          ++step;
          const auto save_begins = Clock::now();
          if (i == 0 && mode > 0) (mode == 1 ? later : now)->save(step);
          save_ms += 1e3 * seconds_since(save_begins);
          const double all = 1e3 * seconds_since(step_begins);
          longest = std::max(longest, all);
          if (i > 0) plain.push_back(all);
        }
        const double round_ms = 1e3 * seconds_since(round_begins);
        later->wait();
        if (ctx.rank != 0 || round < 0) continue;
        times[mode].steps.push_back(median(plain));
        times[mode].saves.push_back(save_ms);
        times[mode].longest.push_back(longest);
        times[mode].rounds.push_back(round_ms);
      }
    }
  };
  testing::run_ranks(kWorld, train, options);
  std::printf("%-14s %9s %9s %11s %9s\n", "saving", "step/ms", "save/ms", "longest/ms", "cost/%");
  const char* const names[3] = {"none", "asynchronous", "synchronous"};
  for (int mode = 0; mode < 3; ++mode) {
    std::vector<double> cost;
    for (std::size_t i = 0; i < times[0].rounds.size(); ++i)
      cost.push_back(100 * (times[mode].rounds[i] / times[0].rounds[i] - 1));
    std::printf("%-14s %9.2f %9.2f %11.2f %9.2f\n", names[mode], median(times[mode].steps),
                median(times[mode].saves), median(times[mode].longest), median(cost));
  }
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  at::set_num_threads(1);
  const auto number = [&](int at, int otherwise) {
    return argc > at ? std::atoi(argv[at]) : otherwise;
  };
  const std::filesystem::path folder =
      argc > 3 ? argv[3] : std::filesystem::temp_directory_path() / "thinwire_bench_saving";
  thinwire::run(number(1, 10), number(2, 20), folder);
  if (argc <= 3) std::filesystem::remove_all(folder);
}
