// One call saves a training and one restores it: with the same bits, in the same or another world,
// and with a named error where that cannot be.
#include "thinwire/torch_ext/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>

#include <fstream>

#include "thinwire/common/error.h"
#include "thinwire/tests/common/remove_tree.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/torch_ext/checkpoint/checkpoint_files.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::Each;
using testing::errors_of;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::RankContext;
using testing::run_ranks;

struct Net : torch::nn::Module {
  Net() {
    auto generator = at::detail::createCPUGenerator(1);
    first = register_parameter("first", at::randn({48, 32}, generator, at::kFloat) * 0.1);
    second = register_parameter("second", at::randn({24, 48}, generator, at::kFloat) * 0.1);
    seen = register_buffer("seen", at::zeros({1}));
  }
  at::Tensor forward(const at::Tensor& x) {
    if (is_training()) seen.add_(1);
    return at::linear(at::relu(at::linear(x, first)), second);
  }
  at::Tensor first, second, seen;
};

struct Other : torch::nn::Module {
  Other() { register_parameter("weight", at::zeros({3, 4})); }
};

// A program with weights, an optimiser with momentum, and residuals.
struct Training {
  Training(RankContext& ctx, const fs::path& directory, bool asynchronous = false,
           const std::string& compression = "topk(density=0.05)")
      : rank(ctx.rank),
        net(std::make_shared<Net>()),
        ddp(net, ctx.group,
            {.compression = compression,
             .find_unused_parameters = compression.starts_with("topk")}),
        optimizer(net->parameters(), torch::optim::AdamOptions(0.01)),
        checkpoint(ctx.group, {.directory = directory, .asynchronous = asynchronous}) {
    checkpoint.add("model", *net);
    checkpoint.add("optimizer", optimizer);
    checkpoint.add("gradients", ddp);
  }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t step = begin; step < end; ++step) {
      auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(9 * step + rank));
      const auto x = at::randn({16, 32}, generator, at::kFloat);
      ddp.zero_grad();
      (ddp.forward(x) - x.narrow(1, 0, 4).sum(1, true)).pow(2).mean().backward();
      optimizer.step();
    }
  }

  int rank;
  std::shared_ptr<Net> net;
  DistributedDataParallel<std::shared_ptr<Net>> ddp;
  torch::optim::Adam optimizer;
  Checkpoint checkpoint;
};

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest()
      : directory_(fs::temp_directory_path() / concat("thinwire-checkpoint-", ::getpid())) {
    remove_tree(directory_);
  }
  ~CheckpointTest() override { remove_tree(directory_); }
  fs::path rank_file(std::int64_t step, int rank, int world) const {
    return detail::CheckpointFile{directory_, step, world, rank}.tensors();
  }
  void save_steps(int world, std::initializer_list<std::int64_t> steps) {
    run_ranks(world, [&](RankContext& ctx) {
      Training training(ctx, directory_);
      std::int64_t done = 0;
      for (const std::int64_t step : steps) {
        training.run(done, step);
        training.checkpoint.save(step);
        done = step;
      }
    });
  }
  const fs::path directory_;
};

TEST_F(CheckpointTest, AResumedTrainingHasTheBitsOfOneThatDidNotStop) {
  for (const bool asynchronous : {false, true}) {
    std::vector<std::uint32_t> whole(2), resumed(2);
    run_ranks(2, [&](RankContext& ctx) {
      Training training(ctx, directory_, asynchronous);
      EXPECT_EQ(training.checkpoint.load(), std::nullopt);
      training.run(0, 5);
      training.checkpoint.save(5);
      training.run(5, 9);  // what is being written does not see these steps
      training.checkpoint.wait();
      whole[static_cast<std::size_t>(ctx.rank)] = training.ddp.parameters_crc32c();
      EXPECT_EQ(training.net->seen.item<float>(), 9);
    });
    run_ranks(2, [&](RankContext& ctx) {
      Training training(ctx, directory_);
      training.run(0, 1);  // whatever there was before is replaced
      ASSERT_EQ(training.checkpoint.load(), 5);
      EXPECT_EQ(training.net->seen.item<float>(), 5);
      training.run(5, 9);
      resumed[static_cast<std::size_t>(ctx.rank)] = training.ddp.parameters_crc32c();
    });
    EXPECT_EQ(whole, resumed);
    remove_tree(directory_);
  }
}

// Buckets lie in the order of the first backward pass from the second step on, and how gradients
// are cut and rounded depends on it.
TEST_F(CheckpointTest, TheOrderOfTheBucketsIsRestored) {
  for (const std::int64_t saved_at : {1, 4}) {
    std::vector<std::uint32_t> whole(2), resumed(2);
    const auto note = [](auto& of, const RankContext& ctx, Training& training) {
      of[static_cast<std::size_t>(ctx.rank)] = training.ddp.parameters_crc32c();
    };
    run_ranks(2, [&](RankContext& ctx) {
      Training training(ctx, directory_, false, "quantize(bits=4)");
      training.run(0, saved_at);
      training.checkpoint.save(saved_at);
      training.run(saved_at, 8);
      note(whole, ctx, training);
    });
    for (const int steps_before : {0, 2}) {
      run_ranks(2, [&](RankContext& ctx) {
        Training training(ctx, directory_, false, "quantize(bits=4)");
        training.run(0, steps_before);
        ASSERT_EQ(training.checkpoint.load(), saved_at);
        training.run(saved_at, 8);
        note(resumed, ctx, training);
      });
      EXPECT_EQ(whole, resumed) << saved_at << " " << steps_before;
    }
    remove_tree(directory_);
  }
}

TEST_F(CheckpointTest, TheNewestStepThatAllRanksHaveIsLoaded) {
  save_steps(2, {1, 2, 3});
  EXPECT_FALSE(fs::exists(directory_ / "step-1"));           // keep = 2
  fs::remove(rank_file(3, 1, 2).replace_extension("json"));  // as a crash before its manifest
  run_ranks(2, [&](RankContext& ctx) {
    Training training(ctx, directory_);
    EXPECT_EQ(training.checkpoint.load(), 2);
  });
}

TEST_F(CheckpointTest, ADamagedFileIsNamedOnEveryRank) {
  save_steps(2, {1});
  const fs::path file = rank_file(1, 1, 2);
  {
    std::fstream out(file, std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(-1, std::ios::end);
    out.put(static_cast<char>(0x55));
  }
  const auto errors = errors_of<Error>(2, [&](RankContext& ctx) {
    Training training(ctx, directory_);
    training.checkpoint.load();
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("rank 1"), HasSubstr("is damaged"),
                                 HasSubstr(file.filename().string()))));
  fs::resize_file(file, fs::file_size(file) - 7);
  EXPECT_THAT(errors_of<Error>(2,
                               [&](RankContext& ctx) {
                                 Training training(ctx, directory_);
                                 training.checkpoint.load();
                               }),
              Each(AllOf(HasSubstr("rank 1"), HasSubstr(file.filename().string()))));
}

TEST_F(CheckpointTest, RanksWithoutACommonStepSaySo) {
  save_steps(2, {1, 2});
  fs::remove(rank_file(1, 0, 2).replace_extension("json"));
  fs::remove(rank_file(2, 1, 2).replace_extension("json"));
  EXPECT_THAT(errors_of<Error>(2,
                               [&](RankContext& ctx) {
                                 Training training(ctx, directory_);
                                 training.checkpoint.load();
                               }),
              Each(HasSubstr("is complete on every rank")));
}

TEST_F(CheckpointTest, AJobThatEndedInItsFirstSaveStartsAnew) {
  save_steps(2, {1});
  fs::remove(rank_file(1, 1, 2).replace_extension("json"));
  run_ranks(2, [&](RankContext& ctx) {
    Training training(ctx, directory_);
    EXPECT_EQ(training.checkpoint.load(), std::nullopt);
    training.checkpoint.save(1);
    EXPECT_EQ(training.checkpoint.load(), 1);
  });
}

TEST_F(CheckpointTest, AnotherProgramsCheckpointIsRefusedByName) {
  save_steps(2, {1});
  EXPECT_THAT(errors_of<Error>(2,
                               [&](RankContext& ctx) {
                                 Training training(ctx, directory_);
                                 training.checkpoint.add(
                                     "more", {[] {
                                                return NamedTensors{{"x", integer_tensor(1)}};
                                              },
                                              [](const NamedTensors&) {}});
                                 training.checkpoint.load();
                               }),
              Each(HasSubstr("has no part 'more'")));
  EXPECT_THAT(errors_of<Error>(2,
                               [&](RankContext& ctx) {
                                 auto other = std::make_shared<Other>();
                                 Checkpoint checkpoint(ctx.group, {.directory = directory_});
                                 checkpoint.add("model", *other);
                                 checkpoint.load();
                               }),
              Each(HasSubstr("which this module has not")));
}

TEST_F(CheckpointTest, AModelThatDoesNotFitOnOneRankIsToldToAll) {
  save_steps(2, {1});
  EXPECT_THAT(
      errors_of<Error>(
          2,
          [&](RankContext& ctx) {
            torch::nn::Module* model = nullptr;
            Net net;
            Other other;
            model = ctx.rank == 1 ? static_cast<torch::nn::Module*>(&other)
                                  : static_cast<torch::nn::Module*>(&net);
            Checkpoint checkpoint(ctx.group, {.directory = directory_});
            checkpoint.add("model", *model);
            checkpoint.add("more", {[] { return NamedTensors(); }, [](const NamedTensors&) {}});
            checkpoint.load();
          }),
      Each(HasSubstr("which this module has not")));
  EXPECT_THAT(errors_of<Error>(2,
                               [&](RankContext& ctx) {
                                 Net net;
                                 Checkpoint checkpoint(ctx.group, {.directory = directory_});
                                 checkpoint.add("model", net);
                                 checkpoint.add(
                                     ctx.rank == 1 ? "more" : "less",
                                     {[] { return NamedTensors(); }, [](const NamedTensors&) {}});
                                 checkpoint.load();
                               }),
              Each(AllOf(HasSubstr("part more"), HasSubstr("part less"))));
}

TEST_F(CheckpointTest, APartThatOneRankCannotSaveIsToldToAll) {
  EXPECT_THAT(errors_of<Error>(2,
                               [&](RankContext& ctx) {
                                 Checkpoint checkpoint(ctx.group, {.directory = directory_});
                                 checkpoint.add("part", {[&]() -> NamedTensors {
                                                           if (ctx.rank == 1)
                                                             throw std::bad_alloc();
                                                           return {{"x", integer_tensor(1)}};
                                                         },
                                                         [](const NamedTensors&) {}});
                                 checkpoint.save(1);
                               }),
              Each(AllOf(HasSubstr("rank 1"), HasSubstr("bad_alloc"))));
}

// What the weights are still owed stays the same, whatever the number of ranks.
TEST_F(CheckpointTest, WorldsOfOtherSizesKeepTheMeanResidual) {
  // The mean of the ranks' residuals, and what owners of a range keep of its mean.
  const auto owed = [](std::span<const NamedTensors> states) {
    at::Tensor sum = at::zeros_like(states[0].at("averager/residual/first"));
    for (const auto& state : states) {
      sum += state.at("averager/residual/first") / static_cast<double>(states.size());
      const std::string prefix = "averager/second_residual/";
      for (const auto& [name, range] : part_of(state, prefix)) {
        if (!name.ends_with("/first")) continue;
        sum.view({-1}).narrow(0, std::stoll(name), range.numel()) += range.view({-1});
      }
    }
    return sum;
  };
  std::vector<NamedTensors> states(4);
  at::Tensor expected, weights;
  int before = 0;
  for (const int world : {4, 2, 3}) {
    std::vector<NamedTensors> loaded(static_cast<std::size_t>(world));
    run_ranks(world, [&](RankContext& ctx) {
      Training training(ctx, directory_);
      const auto step = training.checkpoint.load();
      const auto me = static_cast<std::size_t>(ctx.rank);
      if (before == 0) {
        EXPECT_EQ(step, std::nullopt);
      } else {
        EXPECT_EQ(step, before);
        loaded[me] = training.ddp.state();
        if (ctx.rank == 0) {
          EXPECT_TRUE(at::equal(training.net->first, weights));
        }
      }
      training.run(before, before + 3);
      training.checkpoint.save(before + 3);
      states[me] = training.ddp.state();
      if (ctx.rank == 0) weights = training.net->first.detach().clone();
    });
    if (before != 0) {
      EXPECT_TRUE(at::allclose(owed(loaded), expected, 1e-6, 1e-7)) << world;
    }
    expected = owed(std::span(states).first(static_cast<std::size_t>(world)));
    before += 3;
  }
}

// Rank 0 wrote step 3 and rank 1 died; the job went on from step 2, and this time rank 0 died
// first.
TEST_F(CheckpointTest, FilesOfTwoRunsDoNotMakeOneStep) {
  save_steps(2, {2, 3});
  const auto manifest = rank_file(3, 0, 2).replace_extension("json");
  const auto kept = rank_file(3, 0, 2);
  const fs::path aside = directory_ / "aside";
  fs::create_directories(aside);
  fs::copy(manifest, aside / "json");
  fs::copy(kept, aside / "tensors");
  save_steps(2, {3});
  fs::copy(aside / "json", manifest, fs::copy_options::overwrite_existing);
  fs::copy(aside / "tensors", kept, fs::copy_options::overwrite_existing);
  run_ranks(2, [&](RankContext& ctx) {
    Training training(ctx, directory_);
    EXPECT_EQ(training.checkpoint.load(), 2);
  });
}

// Removed are only steps before those of which all ranks know that they are complete.
TEST_F(CheckpointTest, AStepThatACrashLeftIncompleteTakesThePlaceOfNone) {
  save_steps(2, {1, 2});
  fs::remove(rank_file(2, 1, 2).replace_extension("json"));
  run_ranks(2, [&](RankContext& ctx) {
    Training training(ctx, directory_);
    EXPECT_EQ(training.checkpoint.load(), 1);
    training.run(1, 3);
    training.checkpoint.save(3);
  });
  EXPECT_TRUE(fs::exists(rank_file(1, 0, 2)));
  EXPECT_TRUE(fs::exists(rank_file(1, 1, 2)));
}

TEST_F(CheckpointTest, ADirectoryThatCannotBeReadIsNotTakenForNone) {
  fs::create_directories(directory_.parent_path());
  std::ofstream(directory_) << "a file where the directory should be";
  EXPECT_THAT(errors_of<Error>(2,
                               [&](RankContext& ctx) {
                                 Training training(ctx, directory_);
                                 training.checkpoint.load();
                               }),
              Each(HasSubstr("Not a directory")));
  fs::remove(directory_);
}

TEST_F(CheckpointTest, RanksThatSaveOtherStepsAreToldSo) {
  for (const bool asynchronous : {false, true}) {
    EXPECT_THAT(errors_of<InvalidArgument>(2,
                                           [&](RankContext& ctx) {
                                             Training training(ctx, directory_, asynchronous);
                                             training.checkpoint.save(4 + ctx.rank);
                                             training.checkpoint.wait();
                                           }),
                Each(HasSubstr("'step 4' on rank 0 and 'step 5' on rank 1")));
  }
  EXPECT_THAT(
      errors_of<InvalidArgument>(
          2, [&](RankContext& ctx) { const Training training(ctx, directory_, ctx.rank == 1); }),
      Each(HasSubstr("'asynchronous off' on rank 0 and 'asynchronous on' on rank 1")));
}

TEST_F(CheckpointTest, TwoOfThemOnOneGroup) {
  run_ranks(2, [&](RankContext& ctx) {
    // One rank comes to its second one before the other has the first.
    if (ctx.rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    Checkpoint last(ctx.group, {.directory = directory_ / "last", .keep = 1});
    Checkpoint best(ctx.group, {.directory = directory_ / "best", .keep = 1});
    for (Checkpoint* checkpoint : {&last, &best}) {
      checkpoint->add_random_state();
      checkpoint->save(1);
    }
    EXPECT_EQ(last.load(), 1);
    EXPECT_EQ(best.load(), 1);
  });
}

TEST_F(CheckpointTest, RandomNumbersGoOn) {
  run_ranks(1, [&](RankContext& ctx) {
    Checkpoint checkpoint(ctx.group, {.directory = directory_});
    checkpoint.add_random_state();
    at::manual_seed(5);
    at::rand({3});
    checkpoint.save(1);
    const at::Tensor expected = at::rand({3});
    at::rand({9});
    EXPECT_EQ(checkpoint.load(), 1);
    EXPECT_TRUE(at::equal(at::rand({3}), expected));
  });
}

TEST_F(CheckpointTest, ARankThatCannotWriteIsNamedOnEveryRank) {
  const auto errors = errors_of<Error>(2, [&](RankContext& ctx) {
    const fs::path folder = directory_ / concat("rank", ctx.rank);
    fs::create_directories(directory_);
    if (ctx.rank == 1) std::ofstream(folder) << "a file where the directory should be";
    Training training(ctx, folder);
    training.checkpoint.save(1);
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("rank 1"), HasSubstr("step-1"))));
}

// It returns once the tensors are copied, so what the disk says comes with the next call.
TEST_F(CheckpointTest, AnAsynchronousSaveTellsItsFailureAtTheNextCall) {
  const auto errors = errors_of<Error>(2, [&](RankContext& ctx) {
    const fs::path folder = directory_ / concat("rank", ctx.rank);
    fs::create_directories(directory_);
    if (ctx.rank == 1) std::ofstream(folder) << "a file where the directory should be";
    Training training(ctx, folder, /*asynchronous=*/true);
    EXPECT_NO_THROW(training.checkpoint.save(1));
    training.checkpoint.wait();
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("rank 1"), HasSubstr("step-1"))));
}

TEST_F(CheckpointTest, MistakesAreRefused) {
  run_ranks(1, [&](RankContext& ctx) {
    EXPECT_THROW(Checkpoint(ctx.group, {.directory = ""}), InvalidArgument);
    EXPECT_THROW(Checkpoint(ctx.group, {.directory = "x", .keep = 0}), InvalidArgument);
    Checkpoint checkpoint(ctx.group, {.directory = directory_});
    checkpoint.add_random_state();
    EXPECT_THROW(checkpoint.add_random_state(), InvalidArgument);
    EXPECT_THROW(checkpoint.add("a/b", Checkpoint::Part{}), InvalidArgument);
    EXPECT_THROW(checkpoint.save(-1), InvalidArgument);
    EXPECT_EQ(checkpoint.load(), std::nullopt);
  });
}

}  // namespace
}  // namespace thinwire
