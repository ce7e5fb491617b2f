// What DistributedDataParallel tells of its steps: times, phases, bytes and errors of layers.
#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "ddp_net.h"
#include "thinwire/tests/common/temporary_file.h"
#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/torch_ext/ddp/step_clock.h"

namespace thinwire {
namespace {

using namespace thinwire::testing;

CompressionOptions compress_all(const std::string& spec) {
  CompressionOptions options(spec);
  options.min_numel = 1;
  options.compress_1d = true;
  return options;
}

// Counts the ranges that a profiler of the calling thread sees, as PyTorch's listens.
class RangeCounter {
 public:
  RangeCounter() : handle_(at::addThreadLocalCallback(at::RecordFunctionCallback(begin))) {
    const std::lock_guard lock(mutex);
    counts.clear();
  }
  ~RangeCounter() { at::removeCallback(handle_); }

  static int of(const std::string& name) {
    const std::lock_guard lock(mutex);
    return counts[name];
  }

 private:
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& range) {
    const std::lock_guard lock(mutex);
    ++counts[range.name()];
    return nullptr;
  }
  static inline std::mutex mutex;
  static inline std::map<std::string, int> counts;
  at::CallbackHandle handle_;
};

TEST(StepProfile, AProfilerSeesThePhasesOfEveryBucket) {
  // Of several buckets each is finished in another one's job, or when the thread is idle: the
  // profiler sees that as well.
  for (const double cap : {25.0, 0.004}) {
    run_ranks(2, [cap](RankContext& ctx) {
      auto net = std::make_shared<Net>(1);
      Ddp ddp(net, ctx.group,
              {.compression = compress_all("quantize(bits=4)"), .bucket_cap_mb = cap});
      torch::optim::SGD optimizer(net->parameters(), 0.05);
      for (int step = 0; step < 3; ++step) train_step(ddp, optimizer, ctx.rank, step);
      if (ctx.rank != 0) return train_step(ddp, optimizer, ctx.rank, 3);
      const RangeCounter ranges;
      train_step(ddp, optimizer, ctx.rank, 3);
      const int buckets = RangeCounter::of("thinwire::average_bucket");
      EXPECT_EQ(buckets > 1, cap < 1);
      // What the other rank gets, what it does not, and the mean of the own slice; two messages;
      // the sums of the own slice, its mean, and the others', which waited for the step to prove
      // finite.
      EXPECT_EQ(RangeCounter::of("thinwire::compress"), 3 * buckets);
      EXPECT_EQ(RangeCounter::of("thinwire::exchange"), 2 * buckets);
      EXPECT_EQ(RangeCounter::of("thinwire::decompress"), 3 * buckets);
    });
  }
}

TEST(StepProfile, PartsOfAStep) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group,
            {.compression = compress_all("quantize(bits=4)"), .bucket_cap_mb = 0.004});
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    EXPECT_EQ(ddp.profile().steps, 0);
    for (int step = 0; step < 6; ++step) train_step(ddp, optimizer, ctx.rank, step);
    const StepProfile profile = ddp.profile();
    // The first step has the buckets that the Reducer begins with.
    EXPECT_GE(profile.steps, 4);
    EXPECT_LE(profile.steps, 6);
    EXPECT_GT(profile.forward, 0);
    EXPECT_GT(profile.backward, 0);
    EXPECT_GT(profile.exposed, 0);
    EXPECT_GT(profile.compress, 0);
    EXPECT_GT(profile.compress_cpu, 0);
    EXPECT_GT(profile.exchange, 0);
    EXPECT_GT(profile.decompress, 0);
    EXPECT_GE(profile.step, profile.forward);
    ASSERT_GT(profile.buckets.size(), 1u);
    std::int64_t bytes = 0;
    std::size_t layers = 0;
    for (const BucketProfile& bucket : profile.buckets) {
      EXPECT_LE(bucket.ready, bucket.begun);
      EXPECT_LE(bucket.begun, bucket.finished);
      bytes += bucket.bytes;
      layers += bucket.layers.size();
    }
    std::int64_t expected = 0;
    for (const auto& parameter : net->parameters())
      expected += static_cast<std::int64_t>(parameter.nbytes());
    EXPECT_EQ(bytes, expected);
    EXPECT_EQ(layers, net->parameters().size());
  });
}

TEST(StepProfile, ASingleStepIsAsLongAsSinceTheMeanBefore) {
  StepClock clock(nullptr);
  const auto step = [&](std::int64_t number) {
    clock.forward_begins();
    clock.forward_ends();
    clock.bucket_ready(number, {0, at::ones({4}), {{"weight", 0, {4}}}}, /*last=*/true);
    clock.step_ends(number, {});
  };
  step(7);
  EXPECT_EQ(clock.profile(1).step, 0) << "of the one before nothing is known";
  step(8);
  const StepProfile profile = clock.profile(1);
  EXPECT_EQ(profile.steps, 1);
  EXPECT_GE(profile.step, profile.forward + profile.backward + profile.exposed);
  EXPECT_GT(profile.step, 0);
}

TEST(StepProfile, TheTimelineMarksForwardBackwardAndWait) {
  const TemporaryFile file("timeline.json");
  run_ranks(1, [&](RankContext& ctx) {
    Timeline timeline(file.path(), 0);
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group, {.timeline = &timeline});
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    for (int step = 0; step < 3; ++step) train_step(ddp, optimizer, ctx.rank, step);
  });
  std::map<std::string, int> spans;
  for (const auto& event : nlohmann::json::parse(std::ifstream(file.path()))) {
    if (event.at("ph") == "X") ++spans[event.at("name")];
  }
  for (const char* name : {"FORWARD", "BACKWARD", "WAIT"}) EXPECT_EQ(spans[name], 3) << name;
}

TEST(StepProfile, LayersTellBytesAndErrorOfTheGradientBeforeItIsAveraged) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group, {.compression = "quantize(bits=4)"});
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    train_step(ddp, optimizer, ctx.rank, 0);
    EXPECT_TRUE(ddp.layer_reports().empty());
    ddp.measure_layers();
    train_step(ddp, optimizer, ctx.rank, 1);
    train_step(ddp, optimizer, ctx.rank, 2);
    const auto reports = ddp.layer_reports();
    ASSERT_EQ(reports.size(), net->parameters().size());
    int compressed = 0;
    for (const LayerReport& report : reports) {
      if (report.setting == "none") {
        EXPECT_EQ(report.payload_bytes, static_cast<double>(report.bytes)) << report.name;
        EXPECT_EQ(report.relative_error, 0) << report.name;
        continue;
      }
      ++compressed;
      EXPECT_LT(report.payload_bytes, 0.3 * static_cast<double>(report.bytes)) << report.name;
      // Of the mean, which has been encoded already, it would be zero, as it is of a constant.
      EXPECT_EQ(report.relative_error > 0.01, report.name != "spare") << report.name;
      EXPECT_LT(report.relative_error, 0.5) << report.name;
    }
    EXPECT_GT(compressed, 0);
  });
}

TEST(LayerReports, ErrorsOfKnownGradients) {
  comm::Plan plan;
  plan.set("half", comm::parse_layer_setting("topk(density=0.5)"));
  plan.set("rank one", comm::parse_layer_setting("powersgd(rank=1)"));
  plan.set("coded", comm::parse_layer_setting("powersgd(rank=1, factors=bf16)"));
  plan.set("zero", comm::parse_layer_setting("quantize(bits=4)"));
  const at::Tensor half = torch::tensor({3.0f, 4.0f, 0.0f, 12.0f});
  const at::Tensor matrix = torch::ones({8, 8});
  const auto reports = report_layers({{"half", half},
                                      {"rank one", matrix},
                                      {"zero", torch::zeros({8})},
                                      {"other", half},
                                      {"none", {}},
                                      {"coded", matrix}},
                                     plan);
  ASSERT_EQ(reports.size(), 6u);
  EXPECT_NEAR(reports[0].relative_error, 3.0 / 13, 1e-6);
  EXPECT_NEAR(reports[1].relative_error, 0, 1e-6);
  EXPECT_EQ(reports[1].payload_bytes, 16 * 4);
  EXPECT_TRUE(std::isnan(reports[2].relative_error));
  EXPECT_EQ(reports[3].setting, "none");
  EXPECT_EQ(reports[3].payload_bytes, 16);
  EXPECT_TRUE(std::isnan(reports[4].relative_error));
  EXPECT_EQ(reports[5].payload_bytes, 16 * 2);
}

}  // namespace
}  // namespace thinwire
