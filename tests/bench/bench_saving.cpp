// What saving checkpoints takes from training: two ranks as threads, each with a model of about
// four million parameters and momentum, which saves every so many steps.
//
//   bench_saving [ROUNDS [STEPS [EVERY [FOLDER]]]]
//
// Rounds of STEPS steps without saving, with asynchronous and with synchronous saving take turns.
// Prints for each the medians over the rounds: milliseconds of a call of save(), which waits for
// the save before it, of the step in which it is called, save() included, and of the others; and by
// how much, in percent, the step with the call and the whole round are longer than those of the
// round without saving beside it. Below, the least that a call can take: both ranks copy as many
// bytes as a state has, from warm memory to warm memory. FOLDER: where the files go, by default the
// folder for temporary files.
#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <vector>

#include <torch/torch.h>

#include "thinwire/common/error.h"
#include "thinwire/common/median.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/tests/common/remove_tree.h"
#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/torch_ext/checkpoint/checkpoint.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire {
namespace {

constexpr int kWorld = 2;
constexpr std::int64_t kWidth = 1024, kLayers = 4, kBatch = 64;

struct Times {
  std::vector<double> saves, with_save, others, rounds;  // milliseconds
};

// Bytes of what rank 0 saved.
std::size_t bytes_of_state(const std::filesystem::path& folder) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (entry.path().filename() == concat("rank-0-of-", kWorld, ".safetensors"))
      return static_cast<std::size_t>(entry.file_size());
  throw FileError(concat(folder.string(), " has no checkpoint"));
}

void run(int rounds, int steps, int every, const std::filesystem::path& folder) {
  std::barrier meeting(kWorld);
  Times times[3];
  std::vector<double> copies;  // milliseconds
  std::size_t bytes = 0;
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
        std::vector<double> saves, with_save, others;
        for (int i = 0; i < steps; ++i) {
          const auto step_begins = Clock::now();
          ddp.zero_grad();
          ddp.forward(input).pow(2).mean().backward();
          optimizer.step();
          ++step;
          const bool is_saved = i % every == 0;
          const auto save_begins = Clock::now();
          if (is_saved && mode > 0) (mode == 1 ? later : now)->save(step);
          if (is_saved) saves.push_back(1e3 * seconds_since(save_begins));
          (is_saved ? with_save : others).push_back(1e3 * seconds_since(step_begins));
        }
        const double round_ms = 1e3 * seconds_since(round_begins);
        later->wait();  // so that what follows is not disturbed
        if (ctx.rank != 0 || round < 0) continue;
        times[mode].saves.push_back(median(saves));
        times[mode].with_save.push_back(median(with_save));
        if (!others.empty()) times[mode].others.push_back(median(others));
        times[mode].rounds.push_back(round_ms);
      }
    }
    meeting.arrive_and_wait();
    const std::size_t mine = bytes_of_state(folder);
    std::vector<char> from(mine, 1), to(mine, 2);
    for (int round = 0; round < rounds; ++round) {
      meeting.arrive_and_wait();
      const auto copy_begins = Clock::now();
      std::ranges::copy(from, to.begin());
      if (ctx.rank == 0) copies.push_back(1e3 * seconds_since(copy_begins));
    }
    if (ctx.rank == 0) bytes = mine;
  };
  testing::run_ranks(kWorld, train, options);
  std::printf("%-14s %9s %12s %12s %11s %11s\n", "saving", "save/ms", "its step/ms", "others/ms",
              "its step/%", "round/%");
  const char* const names[3] = {"none", "asynchronous", "synchronous"};
  for (int mode = 0; mode < 3; ++mode) {
    const auto cost = [&](std::vector<double> Times::*of) {
      std::vector<double> percent;
      for (std::size_t i = 0; i < (times[0].*of).size(); ++i)
        percent.push_back(100 * ((times[mode].*of)[i] / (times[0].*of)[i] - 1));
      return median(percent);
    };
    std::printf("%-14s %9.2f %12.2f %12.2f %11.1f %11.1f\n", names[mode], median(times[mode].saves),
                median(times[mode].with_save),
                times[mode].others.empty() ? 0 : median(times[mode].others),
                cost(&Times::with_save), cost(&Times::rounds));
  }
  std::printf("a state has %.1f MB, which both ranks copy in %.2f ms\n",
              static_cast<double>(bytes) / 1e6, median(copies));
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  at::set_num_threads(1);
  const auto number = [&](int at, int otherwise) {
    return argc > at ? std::atoi(argv[at]) : otherwise;
  };
  const std::filesystem::path folder =
      argc > 4 ? argv[4] : std::filesystem::temp_directory_path() / "thinwire_bench_saving";
  thinwire::run(number(1, 10), number(2, 20), number(3, 20), folder);
  if (argc <= 4) thinwire::remove_tree(folder);
}
