// Copies that an asynchronous save is made of: what each save has, and where it lies.
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/common/thread_priority.h"
#include "thinwire/tests/common/remove_tree.h"
#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/torch_ext/checkpoint/checkpoint.h"
#include "thinwire/torch_ext/checkpoint/checkpoint_files.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;
using testing::RankContext;
using testing::run_ranks;

constexpr std::int64_t kElements = 1 << 18;
constexpr std::size_t kLarge = sizeof(float) * kElements;

// Counts what is as large as the tensors below.
class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator& inner) : inner_(inner) {}
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes >= kLarge) ++large_;
    return inner_.allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return inner_.raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    inner_.copy_data(to, from, bytes);
  }
  int large() const { return large_; }

 private:
  c10::Allocator& inner_;
  std::atomic<int> large_ = 0;
};

class AsynchronousSaves : public ::testing::Test {
 protected:
  AsynchronousSaves()
      : directory_(fs::temp_directory_path() / concat("thinwire-saves-", ::getpid())) {
    remove_tree(directory_);
  }
  ~AsynchronousSaves() override { remove_tree(directory_); }

  // Of the one rank, as the disk has it.
  NamedTensors saved(std::int64_t step) const {
    const detail::CheckpointFile file{directory_, step, 1, 0};
    return load_tensors(file.tensors());
  }
  CheckpointOptions options() const {
    return {.directory = directory_, .keep = 9, .asynchronous = true};
  }

  const fs::path directory_;
};

TEST_F(AsynchronousSaves, EachHasTheValuesOfItsStep) {
  run_ranks(1, [&](RankContext& ctx) {
    at::Tensor large = at::zeros({kElements}), changing = at::zeros({3});
    bool has_more = true;
    Checkpoint checkpoint(ctx.group, options());
    checkpoint.add("part", {[&] {
                              NamedTensors state = {{"large", large}, {"changing", changing}};
                              // Of which the copy is in another order than the tensor.
                              if (has_more) state.emplace("more", large.view({512, 512}).t());
                              return state;
                            },
                            [](const NamedTensors&) {}});
    for (int step = 1; step <= 4; ++step) {
      large.copy_(at::arange(kElements) + step);
      // Another shape, another type, and one that comes and goes.
      changing =
          step < 3 ? at::full({step}, static_cast<float>(step)) : at::full({2}, step, at::kLong);
      has_more = step % 2 == 1;
      checkpoint.save(step);
      large.fill_(-1);
      changing.fill_(-1);
    }
    checkpoint.wait();
    for (int step = 1; step <= 4; ++step) {
      const NamedTensors file = saved(step);
      const at::Tensor expected = at::arange(kElements).to(at::kFloat) + step;
      EXPECT_TRUE(at::equal(file.at("part/large"), expected)) << step;
      EXPECT_TRUE(file.at("part/changing").eq(step).all().item<bool>()) << step;
      EXPECT_EQ(file.at("part/changing").numel(), step < 3 ? step : 2);
      EXPECT_EQ(file.contains("part/more"), step % 2 == 1);
      if (step % 2 == 1) {
        EXPECT_TRUE(at::equal(file.at("part/more"), expected.view({512, 512}).t())) << step;
      }
    }
  });
}

// Fresh memory costs several times what the copies do.
TEST_F(AsynchronousSaves, TheMemoryOfTheCopiesIsKept) {
  // Never freed: what it gave may live longer than this test.
  auto* const counting = new CountingAllocator(*c10::GetCPUAllocator());
  run_ranks(1, [&](RankContext& ctx) {
    at::Tensor first = at::zeros({kElements}), second = at::zeros({2, kElements});
    Checkpoint checkpoint(ctx.group, options());
    checkpoint.add("part", {[&] {
                              return NamedTensors{{"first", first}, {"second", second}};
                            },
                            [](const NamedTensors&) {}});
    c10::SetCPUAllocator(counting, /*priority=*/1);
    std::vector<int> counts;
    for (int step = 1; step <= 3; ++step) {
      const int before = counting->large();
      checkpoint.save(step);
      checkpoint.wait();
      counts.push_back(counting->large() - before);
    }
    EXPECT_THAT(counts, ::testing::ElementsAre(2, 0, 0));
  });
}

// It is written before save() returns, so there is nothing to keep a copy from.
TEST_F(AsynchronousSaves, ASynchronousOneCopiesNothing) {
  auto* const counting = new CountingAllocator(*c10::GetCPUAllocator());
  run_ranks(1, [&](RankContext& ctx) {
    at::Tensor values = at::zeros({kElements});
    Checkpoint checkpoint(ctx.group, {.directory = directory_});
    checkpoint.add("part", {[&] {
                              return NamedTensors{{"values", values}};
                            },
                            [](const NamedTensors&) {}});
    c10::SetCPUAllocator(counting, /*priority=*/1);
    checkpoint.save(1);
    EXPECT_EQ(counting->large(), 0);
  });
}

TEST(ThreadPriority, GivesWayOnItsOwnThreadAlone) {
  int of_thread = 0;
  std::thread([&] {
    give_way_to_other_threads();
    of_thread = ::getpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()));
  }).join();
  EXPECT_EQ(of_thread, 19);
  EXPECT_LT(::getpriority(PRIO_PROCESS, static_cast<id_t>(::gettid())), 19);
}

}  // namespace
}  // namespace thinwire
