#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <torch/serialize.h>

#include <atomic>
#include <sstream>
#include <tuple>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/tests/torch_ext/ddp/ddp_net.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using testing::Ddp;
using ::testing::Each;
using testing::errors_of;
using testing::expect_same_parameters;
using ::testing::HasSubstr;
using testing::inputs;
using testing::loss_of;
using testing::Net;
using testing::RankContext;
using testing::run_ranks;
using testing::train_step;
using testing::trained_alone;

class DdpOnRanks : public ::testing::TestWithParam<std::tuple<int, bool>> {};

TEST_P(DdpOnRanks, UncompressedEqualsOneProcessWithAllBatches) {
  const auto [world, views] = GetParam();
  const auto alone = trained_alone(world, 10);
  run_ranks(world, [&, views = views](RankContext& ctx) {
    // Ranks start from different weights: rank 0's must win.
    auto net = std::make_shared<Net>(static_cast<std::uint64_t>(ctx.rank) + 1);
    Ddp ddp(net, ctx.group, {.compression = "none", .gradient_as_bucket_view = views});
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    for (int step = 0; step < 10; ++step) train_step(ddp, optimizer, ctx.rank, step);
    expect_same_parameters(*net, *alone);
    EXPECT_TRUE(ddp.replicas_equal());
  });
}

INSTANTIATE_TEST_SUITE_P(Worlds, DdpOnRanks,
                         ::testing::Combine(::testing::Values(1, 2, 4), ::testing::Bool()));

class DdpWithCodec : public ::testing::TestWithParam<const char*> {};

TEST_P(DdpWithCodec, TrainsAndKeepsReplicasEqual) {
  run_ranks(3, [spec = GetParam()](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    // A bucket cap far below the model's size, so that there are several buckets.
    Ddp ddp(net, ctx.group, {.compression = spec, .bucket_cap_mb = 0.004});
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    double first = 0, last = 0;
    for (int step = 0; step < 60; ++step) {
      ddp.zero_grad();
      const auto x = inputs(ctx.rank, step);
      const auto loss = loss_of(ddp.forward(x, true).first, x);
      loss.backward();
      optimizer.step();
      (step < 5 ? first : last) += loss.item<double>() * (step < 5 || step >= 55);
    }
    EXPECT_LT(last, 0.7 * first);
    EXPECT_TRUE(ddp.replicas_equal());
    EXPECT_EQ(ddp.summary().steps, 60);
    EXPECT_GT(ddp.summary().ratio(), 1.5);
  });
}

INSTANTIATE_TEST_SUITE_P(Codecs, DdpWithCodec,
                         ::testing::Values("quantize(bits=4)", "cast(bf16)", "topk(density=0.05)",
                                           "quantize(bits=2, rounding=stochastic)"));

TEST(DistributedDataParallel, NoSyncAddsUpAndTheNextPassSendsTheSum) {
  run_ranks(2, [](RankContext& ctx) {
    auto once = std::make_shared<Net>(1);
    auto twice = std::make_shared<Net>(1);
    Ddp ddp_once(once, ctx.group);
    Ddp ddp_twice(twice, ctx.group);
    const auto x = inputs(ctx.rank, 0);
    const auto y = inputs(ctx.rank, 1);
    (loss_of(ddp_once.forward(x, true).first, x) + loss_of(ddp_once.forward(y, true).first, y))
        .backward();
    {
      const auto guard = ddp_twice.no_sync();
      loss_of(ddp_twice.forward(x, true).first, x).backward();
      EXPECT_EQ(ddp_twice.summary().steps, 0);
    }
    loss_of(ddp_twice.forward(y, true).first, y).backward();
    EXPECT_LE((once->first.grad() - twice->first.grad()).abs().max().item<double>(), 1e-5);
    EXPECT_EQ(ddp_twice.summary().steps, 1);
  });
}

TEST(DistributedDataParallel, UnusedParametersAreFoundOnRequest) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group, {.find_unused_parameters = true});
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    // Rank 1 never uses the spare layer, rank 0 in every other step.
    for (int step = 0; step < 6; ++step) {
      train_step(ddp, optimizer, ctx.rank, step, ctx.rank == 0 && step % 2 == 0);
    }
    EXPECT_TRUE(ddp.replicas_equal());
  });
}

TEST(DistributedDataParallel, ReplicasThatDifferInOneBitAreToldOnEveryRank) {
  run_ranks(3, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    EXPECT_TRUE(ddp.replicas_equal());
    auto* value = static_cast<std::uint32_t*>(net->second.mutable_data_ptr()) + 7;
    if (ctx.rank == 2) *value ^= 1;
    EXPECT_FALSE(ddp.replicas_equal());
    if (ctx.rank == 2) *value ^= 1;
    EXPECT_TRUE(ddp.replicas_equal());
  });
}

TEST(DistributedDataParallel, BuffersComeFromRankZero) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    net->seen.fill_(ctx.rank + 5);
    Ddp ddp(net, ctx.group);
    EXPECT_EQ(net->seen.item<float>(), 5.0f) << "at construction";
    net->seen.fill_(ctx.rank + 7);
    const auto x = inputs(ctx.rank, 0);
    loss_of(ddp.forward(x, true).first, x).backward();
    EXPECT_EQ(net->seen.item<float>(), 7.0f) << "before a forward pass";
    net->seen.fill_(ctx.rank + 9);
    ddp.eval();
    ddp.forward(x, true);
    EXPECT_EQ(net->seen.item<float>(), ctx.rank + 9.0f) << "not in evaluation";
  });
}

TEST(DistributedDataParallel, BuffersStayTheRanksOwnWhereTheOptionSaysSo) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group, {.broadcast_buffers = false});
    net->seen.fill_(ctx.rank + 7);
    ddp.forward(inputs(ctx.rank, 0), true);
    EXPECT_EQ(net->seen.item<float>(), ctx.rank + 7.0f);
  });
}

// Loading replaces what a buffer's tensor holds, and a conversion as well.
TEST(DistributedDataParallel, BuffersComeFromRankZeroAfterALoadAndAConversion) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    std::ostringstream saved;
    torch::save(net, saved);
    Ddp ddp(net, ctx.group);
    std::istringstream read(saved.str());
    torch::load(net, read);
    net->seen.fill_(ctx.rank + 3);
    const auto x = inputs(ctx.rank, 0);
    loss_of(ddp.forward(x, true).first, x).backward();
    EXPECT_EQ(net->seen.item<float>(), 3.0f);
    net->seen.set_data(at::full({1}, ctx.rank + 4.0));
    ddp.forward(x, true);
    EXPECT_EQ(net->seen.item<double>(), 4.0);
  });
}

TEST(DistributedDataParallel, WarmupStepsAreUncompressedAndCountedApart) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    CompressionOptions compression("quantize(bits=4)");
    compression.warmup_steps = 4;
    Ddp ddp(net, ctx.group, {.compression = compression});
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    for (int step = 0; step < 4; ++step) train_step(ddp, optimizer, ctx.rank, step);
    const CommunicationSummary warm = ddp.summary();
    EXPECT_EQ(warm.warmup_steps, 4);
    // Beside the gradients the ranks agree on their buckets: 16 bytes each time.
    EXPECT_GE(warm.total.sent_bytes, warm.total.dense_bytes);
    EXPECT_LE(warm.total.sent_bytes, warm.total.dense_bytes + 8 * 16);
    for (int step = 4; step < 10; ++step) train_step(ddp, optimizer, ctx.rank, step);
    const CommunicationSummary summary = ddp.summary();
    EXPECT_EQ(summary.steps, 10);
    EXPECT_EQ(summary.warmup_steps, 4);
    EXPECT_GT(summary.ratio(), 3.0);
    EXPECT_LT(summary.wire_bytes_per_step(), 0.4 * summary.dense_bytes_per_step());
  });
}

// What a profiler of this process sees of the communication threads.
struct Observed {
  static inline std::atomic<int> buckets, threads;
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& range) {
    if (std::string_view(range.name()) == "thinwire::average_bucket") {
      ++buckets;
      threads = at::get_num_threads();
    }
    return nullptr;
  }
  // Listens as the profiler of PyTorch does: on the thread that starts it.
  Observed() : handle_(at::addThreadLocalCallback(at::RecordFunctionCallback(begin))) {
    buckets = threads = 0;
  }
  ~Observed() { at::removeCallback(handle_); }

 private:
  at::CallbackHandle handle_;
};

TEST(DistributedDataParallel, AProfilerSeesTheCommunicationThreadAndItsOptions) {
  run_ranks(1, [](RankContext& ctx) {
    const int usual = at::get_num_threads();
    const std::tuple<double, int, int> cases[] = {{25, 0, 1}, {0.004, 3, 2}};
    for (const auto& [cap, threads, buckets] : cases) {
      auto net = std::make_shared<Net>(1);
      Ddp ddp(net, ctx.group, {.bucket_cap_mb = cap, .communication_threads = threads});
      torch::optim::SGD optimizer(net->parameters(), 0.05);
      for (int step = 0; step < 3; ++step) {
        const Observed observed;
        train_step(ddp, optimizer, ctx.rank, step);
        EXPECT_EQ(Observed::buckets, buckets) << "step " << step;
        EXPECT_EQ(Observed::threads, threads == 0 ? usual : threads);
      }
    }
    EXPECT_EQ(at::get_num_threads(), usual);
  });
}

TEST(DistributedDataParallel, ACommunicationThreadThatOneRankCannotHaveIsToldToAll) {
  const auto errors = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    DistributedDataParallelOptions options;
    if (ctx.rank == 1) options.communication_cpus = {-1};
    Ddp ddp(net, ctx.group, options);
  });
  EXPECT_THAT(errors, Each(HasSubstr("there is no CPU -1")));
}

// ---- what goes wrong ---------------------------------------------------------------------------

TEST(DistributedDataParallel, ADifferentModelIsNamedOnEveryRank) {
  const auto errors = errors_of<InvalidArgument>(3, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1, ctx.rank == 1 ? 50 : 48);
    Ddp ddp(net, ctx.group);
  });
  for (const std::string& error : errors) {
    EXPECT_THAT(error, AllOf(HasSubstr("the model"), HasSubstr("first [48, 32]"),
                             HasSubstr("first [50, 32]"), HasSubstr("rank 1")));
  }
}

TEST(DistributedDataParallel, WhatIsWrongOnOneRankAloneIsToldToAll) {
  struct Case {
    const char* expected;
    void (*change)(std::shared_ptr<Net>&, DistributedDataParallelOptions&);
  };
  const Case cases[] = {
      {"got a null pointer", [](auto& net, auto&) { net = nullptr; }},
      {"bucket_cap_mb must be positive", [](auto&, auto& options) { options.bucket_cap_mb = -1; }},
      {"no parameter that requires a gradient",
       [](auto& net, auto&) {
         for (auto& parameter : net->parameters()) parameter.set_requires_grad(false);
       }},
      {"'far' is on meta",
       [](auto& net, auto&) { net->register_parameter("far", at::empty({2}, at::kMeta)); }},
      {"find_unused_parameters true",
       [](auto&, auto& options) { options.find_unused_parameters = true; }},
      {"static_graph true", [](auto&, auto& options) { options.static_graph = true; }},
      {"broadcast_buffers false", [](auto&, auto& options) { options.broadcast_buffers = false; }},
      {"bucket_cap_mb 3", [](auto&, auto& options) { options.bucket_cap_mb = 3; }},
      {"ignored spare", [](auto&, auto& options) { options.ignored_parameters = {"spare"}; }},
      {"no_such_codec", [](auto&, auto& options) { options.compression = "no_such_codec"; }},
      // Its reference is what the others have.
      {"policy lgreco", [](auto&, auto& options) { options.compression = "lgreco"; }},
      {"0 steps from 0",
       [](auto&, auto& options) {
         options.compression.record_gradients = "gradients";
         options.compression.record_steps = 0;
       }},
      {"records gradients of 20 steps",
       [](auto&, auto& options) { options.compression.record_gradients = "gradients"; }},
  };
  for (const Case& wrong : cases) {
    const auto errors = errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
      auto net = std::make_shared<Net>(1);
      DistributedDataParallelOptions options;
      options.compression = "quantize(bits=4)";
      if (ctx.rank == 1) wrong.change(net, options);
      try {
        Ddp ddp(net, ctx.group, options);
      } catch (...) {
        // The rank whose mistake it was comes again before the others, or after them.
        auto again = std::make_shared<Net>(1);
        Ddp ddp(again, ctx.group, {.compression = "quantize(bits=4)"});
        throw;
      }
    });
    EXPECT_THAT(errors, Each(AllOf(HasSubstr(wrong.expected), HasSubstr("rank 1"))));
  }
}

TEST(DistributedDataParallel, ADifferentCompressionIsNamedOnEveryRank) {
  const auto errors = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group, {.compression = ctx.rank == 0 ? "cast(bf16)" : "cast(fp16)"});
  });
  for (const std::string& error : errors) {
    EXPECT_THAT(error, AllOf(HasSubstr("bf16"), HasSubstr("fp16"), HasSubstr("rank 1")));
  }
}

TEST(DistributedDataParallel, RefusesBadArguments) {
  run_ranks(1, [](RankContext& ctx) {
    EXPECT_THROW(Ddp(nullptr, ctx.group), InvalidArgument);
    EXPECT_THROW(Ddp(std::make_shared<Net>(1), nullptr), InvalidArgument);
    EXPECT_THROW(Ddp(std::make_shared<Net>(1), ctx.group, {.bucket_cap_mb = 0}), InvalidArgument);
    auto frozen = std::make_shared<Net>(1);
    for (auto& parameter : frozen->parameters()) parameter.set_requires_grad(false);
    EXPECT_THROW(Ddp(frozen, ctx.group), InvalidArgument);
  });
}

// Bytes of the compressed layers that rank 0 of 3 sends in a step, after training that works.
double trained_bytes(const char* spec, const char* strategy) {
  SCOPED_TRACE(concat(spec, " by ", strategy));
  double bytes = 0;
  run_ranks(3, [&](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    CompressionOptions compression(spec);
    compression.strategy = strategy;
    Ddp ddp(net, ctx.group, {.compression = compression});
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    const auto x = inputs(ctx.rank, 0);
    const double before = loss_of(ddp.forward(x, true).first, x).item<double>();
    for (int step = 0; step < 12; ++step) train_step(ddp, optimizer, ctx.rank, step);
    EXPECT_LT(loss_of(ddp.forward(x, true).first, x).item<double>(), before);
    EXPECT_TRUE(ddp.replicas_equal());
    EXPECT_GT(ddp.summary().ratio(), 1.5);
    if (ctx.rank == 0) bytes = ddp.summary().compressed_wire_bytes_per_step();
  });
  return bytes;
}

TEST(DistributedDataParallel, AveragesByTheStrategyThatItsOptionsName) {
  // Every codec can be gathered, which on 3 ranks sends a third to two thirds more than the way
  // that is made for it.
  const std::pair<const char*, const char*> cases[] = {{"quantize(bits=4)", "scatter_reduce"},
                                                       {"topk(density=0.1)", "sparse"},
                                                       {"powersgd(rank=2)", "low_rank"},
                                                       {"randomk(density=0.2)", "dense"},
                                                       {"cast(fp8_e4m3)", "scatter_reduce"}};
  for (const auto& [spec, strategy] : cases) {
    EXPECT_GT(trained_bytes(spec, "gather_reduce"), 1.25 * trained_bytes(spec, strategy)) << spec;
  }
  // What a codec cannot do, and what does not exist.
  const std::tuple<const char*, const char*, const char*> wrong[] = {
      {"quantize(bits=4)", "dense", "dense"},
      {"topk(density=0.1)", "low_rank", "low_rank"},
      {"powersgd(rank=2)", "hierarchical", "hierarchical"},
      {"quantize(bits=4)", "hierarchical", "several hosts"},
      {"topk(density=0.1)", "sprase", "did you mean sparse?"}};
  for (const auto& [spec, strategy, expected] : wrong) {
    SCOPED_TRACE(concat(spec, " by ", strategy));
    const auto errors =
        errors_of<InvalidArgument>(2, [&, spec = spec, strategy = strategy](RankContext& ctx) {
          CompressionOptions compression(spec);
          compression.strategy = strategy;
          auto net = std::make_shared<Net>(1);
          Ddp ddp(net, ctx.group, {.compression = compression});
          torch::optim::SGD optimizer(net->parameters(), 0.05);
          train_step(ddp, optimizer, ctx.rank, 0);
        });
    EXPECT_THAT(errors, ::testing::Each(HasSubstr(expected)));
  }
}

TEST(DistributedDataParallel, ADeadRankSurfacesInBackward) {
  testing::RankOptions options;
  options.timeout = std::chrono::seconds(5);
  std::atomic<bool> gone = false;
  std::string error;
  run_ranks(
      2,
      [&](RankContext& ctx) {
        auto net = std::make_shared<Net>(1);
        auto ddp = std::make_unique<Ddp>(net, ctx.group);
        torch::optim::SGD optimizer(net->parameters(), 0.05);
        train_step(*ddp, optimizer, ctx.rank, 0);
        if (ctx.rank == 1) {
          ddp.reset();
          ctx.group.reset();
          gone = true;
          return;
        }
        while (!gone) std::this_thread::yield();
        try {
          for (int step = 1; step < 3; ++step) train_step(*ddp, optimizer, 0, step);
        } catch (const CommError& failure) {
          error = failure.what();
          EXPECT_EQ(failure.rank(), 1);
        }
      },
      options);
  EXPECT_THAT(error, HasSubstr("rank 1 has left: it ended its training after 1 steps"));
}

// The timeout is far away: who learns by it would take longer than the watchdog.
TEST(DistributedDataParallel, AnExceptionOfOneRanksModelInBackwardReachesTheOthers) {
  testing::RankOptions patience;
  patience.timeout = std::chrono::minutes(5);
  patience.watchdog = std::chrono::seconds(60);
  const auto errors = errors_of<Error>(
      3,
      [](RankContext& ctx) {
        auto net = std::make_shared<Net>(1);
        Ddp ddp(net, ctx.group, {.compression = "quantize(bits=4)", .bucket_cap_mb = 0.004});
        torch::optim::SGD optimizer(net->parameters(), 0.05);
        train_step(ddp, optimizer, ctx.rank, 0);
        // The first layer's gradient is the last to come: others are on their way by then.
        if (ctx.rank == 0)
          net->parameters().front().register_hook(
              [](const at::Tensor&) { throw std::runtime_error("a fault of a layer"); });
        const auto x = inputs(ctx.rank, 1);
        loss_of(ddp.forward(x, true).first, x).backward();
      },
      patience);
  EXPECT_THAT(errors, Each(HasSubstr("a fault of a layer")));
}

// Ranks that wait for each other in different passes are told in which.
TEST(DistributedDataParallel, APassThatOneRankMakesAloneIsNamed) {
  testing::RankOptions options;
  options.timeout = std::chrono::seconds(3);
  const auto errors = [&](const std::function<void(Ddp&, int)>& more) {
    return errors_of<CommError>(
        2,
        [&](RankContext& ctx) {
          auto net = std::make_shared<Net>(1);
          Ddp ddp(net, ctx.group, {.compression = "quantize(bits=4)"});
          torch::optim::SGD optimizer(net->parameters(), 0.05);
          train_step(ddp, optimizer, ctx.rank, 0);
          if (ctx.rank == 1) more(ddp, ctx.rank);
          for (int step = 1; step < 3; ++step) train_step(ddp, optimizer, ctx.rank, step);
          FAIL() << "nobody noticed";
        },
        options);
  };
  const auto named = Each(AllOf(HasSubstr("wait for each other in different operations"),
                                HasSubstr("rank 1 in"), HasSubstr("broadcast of the buffers")));
  EXPECT_THAT(errors([](Ddp& ddp, int rank) { ddp.forward(inputs(rank, 7), true); }), named);
  EXPECT_THAT(errors([](Ddp& ddp, int) { ddp.module()->eval(); }), named);
}

TEST(DistributedDataParallel, ARankThatAnExceptionEndsIsNamedWithIt) {
  testing::RankOptions options;
  options.timeout = std::chrono::seconds(5);
  std::string error;
  run_ranks(
      2,
      [&](RankContext& ctx) {
        try {
          auto net = std::make_shared<Net>(1);
          Ddp ddp(net, ctx.group);
          torch::optim::SGD optimizer(net->parameters(), 0.05);
          for (int step = 0; step < 3; ++step) {
            train_step(ddp, optimizer, ctx.rank, step);
            if (ctx.rank == 1 && step == 1) throw std::runtime_error("out of data");
          }
        } catch (const CommError& failure) {
          error = failure.what();
        } catch (const std::runtime_error&) {
          ctx.group.reset();
        }
      },
      options);
  EXPECT_THAT(error, HasSubstr("rank 1 has left: an exception ended its training after 2 steps"));
}

}  // namespace
}  // namespace thinwire
