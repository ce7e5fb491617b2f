#include "thinwire/torch_ext/adaptive/candidate_costs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "thinwire/comm/average/selector.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/allocation/curves.h"
#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire {
namespace {

constexpr std::int64_t kShape[] = {256, 128};
constexpr std::int64_t kNumel = 256 * 128;

Spec spec_of(const char* text) {
  return Spec::parse(text);
}

comm::LinkModel model_of(double beta) {
  comm::LinkModel model;
  model.world = 4;
  model.hosts = {"a", "b", "c", "d"};
  for (auto& cost : model.backends["gloo"].collectives) cost = {1e-4, beta};
  model.codecs["quantize(bits=4, bucket=1024, norm=minmax, rounding=nearest)"] = {1e-10, 2e-10,
                                                                                  3e-10};
  model.codecs["powersgd(rank=2, iterations=1, factors=fp32)"] = {1e-9, 1e-9, 1e-9};
  model.codecs["powersgd(rank=8, iterations=1, factors=fp32)"] = {4e-9, 4e-9, 4e-9};
  return model;
}

TEST(CandidateCosts, BytesFollowTheWayThatACodecIsAveraged) {
  EXPECT_EQ(candidate_bytes(spec_of("identity"), kShape, 4), 1.5 * 4 * kNumel);
  EXPECT_EQ(candidate_bytes(spec_of("powersgd(rank=2)"), kShape, 4), 1.5 * 4 * 2 * (256 + 128));
  for (const char* text : {"topk(density=0.01)", "ternary(density=0.01)"}) {
    const double payload = lgreco::payload_bytes(spec_of(text), kShape);
    // By owners, who keep what is more than half of a payload.
    EXPECT_EQ(candidate_bytes(spec_of(text), kShape, 4), std::ceil(1.5 * payload)) << text;
    EXPECT_EQ(candidate_bytes(spec_of(text), kShape, 2), payload) << text;
  }
  EXPECT_EQ(candidate_bytes(spec_of("identity"), kShape, 4, 2), 1.5 * 2 * kNumel);
  // Where the entries of many ranks meet, owners send fewer on.
  EXPECT_LT(candidate_bytes(spec_of("topk(density=0.1)"), kShape, 32), 5.0 * kNumel);
  // Of three ranks two thirds, twice: rounded up to a whole number.
  EXPECT_EQ(candidate_bytes(spec_of("identity"), {{1, 1}}, 3), 6);
  // One rank alone reckons as two would.
  EXPECT_EQ(candidate_bytes(spec_of("identity"), kShape, 1), 4 * kNumel);
}

TEST(CandidateCosts, SecondsOnTheWireAndInTheCodec) {
  const comm::LinkModel model = model_of(1e-8);
  const comm::BackendLink& link = model.backend("gloo");
  EXPECT_DOUBLE_EQ(wire_seconds(1e6, link), 1e-2);
  const double floats = 4.0 * kNumel;
  const comm::CodecCost cost = {1e-10, 2e-10, 3e-10};
  EXPECT_DOUBLE_EQ(coding_seconds(spec_of("quantize(bits=4)"), kNumel, cost, 4),
                   floats * (1e-10 + 3e-10 + 1e-10 / 4 + 2e-10));
  EXPECT_DOUBLE_EQ(coding_seconds(spec_of("topk(density=0.01)"), kNumel, cost, 4),
                   floats * (1e-10 + 3e-10 + 1e-10 / 4 + 2e-10));
  EXPECT_DOUBLE_EQ(coding_seconds(spec_of("powersgd(rank=2)"), kNumel, cost, 4), floats * 3e-10);
}

TEST(CandidateCosts, TheNearestMeasuredCodecStandsIn) {
  const comm::LinkModel model = model_of(1e-8);
  EXPECT_EQ(codec_cost(spec_of("quantize(bits=4)"), model).decompress, 2e-10);
  EXPECT_EQ(codec_cost(spec_of("quantize(bits=7)"), model).decompress, 2e-10);
  EXPECT_EQ(codec_cost(spec_of("powersgd(rank=3)"), model).compress, 1e-9);
  EXPECT_EQ(codec_cost(spec_of("powersgd(rank=5)"), model).compress, 4e-9);
  EXPECT_EQ(codec_cost(spec_of("topk(density=0.1)"), model).compress,
            comm::CodecUse::kAssumedCost.compress);
  EXPECT_EQ(codec_cost(spec_of("identity"), model), comm::CodecCost{});
  EXPECT_EQ(codec_cost(spec_of("onebit"), model).compress, comm::CodecUse::kAssumedCost.compress);
  EXPECT_THROW(codec_cost(spec_of("onebyte"), model), InvalidArgument);
}

// A policy's candidates are weighed by the reduction that their codec then gets.
TEST(CandidateCosts, AreThoseOfTheReductionThatIsChosen) {
  for (const char* text :
       {"identity", "cast(bf16)", "quantize(bits=4)", "onebit", "powersgd(rank=2)",
        "powersgd(rank=2, iterations=3)", "topk(density=0.01)", "topk(density=0.4)",
        "ternary(density=0.1)", "randomk(density=0.1)"}) {
    const comm::CodecUse use = comm::use_of(*make_codec(text), kNumel, DType::kFloat32, kShape);
    const comm::Strategy strategy = comm::usual_strategy(use, 4, 0);
    const double sent = comm::sent_bytes(strategy, use, {.world = 4});
    // The table knows the most that sparse codecs write, the curve what is expected.
    EXPECT_LE(candidate_bytes(spec_of(text), kShape, 4), std::ceil(sent)) << text;
    EXPECT_GE(candidate_bytes(spec_of(text), kShape, 4), 0.8 * sent) << text;
  }
  // Its payloads are added as they are, not decoded by owners.
  const comm::CodecCost cost = {1e-10, 2e-10, 3e-10};
  EXPECT_DOUBLE_EQ(coding_seconds(spec_of("randomk(density=0.1)"), kNumel, cost, 4),
                   4.0 * kNumel * 3e-10);
  // Three iterations send the factors three times.
  EXPECT_EQ(candidate_bytes(spec_of("powersgd(rank=2, iterations=3)"), kShape, 4),
            3 * candidate_bytes(spec_of("powersgd(rank=2)"), kShape, 4));
}

// By a clock that counts its readings: the fastest of the runs of each of three loops, for a byte.
TEST(CandidateCosts, MeasuredIsTheFastestRunByTheClock) {
  constexpr double kBytes = 4.0 * 256 * 256;
  std::vector<double> left = {5, 3, 4, 30, 20, 10, 600, 800, 700};
  double now = 0;
  bool running = false;
  const auto clock = [&] {
    if (running) {
      now += left.front();
      left.erase(left.begin());
    }
    running = !running;
    return now;
  };
  const comm::CodecCost cost = measured_codec_cost(spec_of("quantize(bits=4)"), clock);
  EXPECT_DOUBLE_EQ(cost.compress, 3 / kBytes);
  EXPECT_DOUBLE_EQ(cost.decompress, 10 / kBytes);
  EXPECT_DOUBLE_EQ(cost.accumulate, 600 / kBytes);
  // Ranks beyond what the small layer can have are reckoned from the largest that it has.
  left = {1, 1, 1, 1, 1, 1, 1, 1, 1};
  EXPECT_DOUBLE_EQ(measured_codec_cost(spec_of("powersgd(rank=64)"), clock).compress, 2 / kBytes);
  EXPECT_EQ(measured_codec_cost(spec_of("identity"), clock), comm::CodecCost{});
}

// The same layers on networks of different speed: bytes decide on a slow one, the codecs' time on a
// middling one, and on a fast one nothing is compressed.
TEST(CandidateCosts, ObjectiveTimeFollowsTheNetwork) {
  const auto plan_for = [](double beta, lgreco::Objective objective) {
    const comm::LinkModel model = model_of(beta);
    const comm::BackendLink& link = model.backend("gloo");
    std::vector<lgreco::Layer> layers;
    for (const char* name : {"first", "second"}) {
      lgreco::Layer layer{name, kNumel, 2, {}, 100};
      const std::pair<const char*, double> candidates[] = {{"identity", 0},
                                                           {"powersgd(rank=8)", 8},
                                                           {"quantize(bits=4)", 9},
                                                           {"powersgd(rank=2)", 9}};
      for (const auto& [text, error] : candidates) {
        const Spec spec = Spec::parse(text);
        const double bytes = candidate_bytes(spec, kShape, 4);
        layer.candidates.push_back(
            {text, bytes, error,
             wire_seconds(bytes, link) + coding_seconds(spec, kNumel, codec_cost(spec, model), 4)});
      }
      layers.push_back(layer);
    }
    lgreco::AllocationOptions options;
    options.objective = objective;
    const auto allocation = lgreco::allocate(layers, options);
    std::vector<std::string> specs;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      specs.push_back(layers[l].candidates[allocation.choice[l]].spec);
    }
    return std::pair(specs, allocation);
  };
  using ::testing::Each;
  constexpr double k100Megabit = 8e-8, k10Gigabit = 8e-10, kMemory = 1e-11;
  using lgreco::Objective;
  const auto bytes = plan_for(k10Gigabit, Objective::kBytes);
  EXPECT_THAT(bytes.first, Each("powersgd(rank=2)"));
  EXPECT_THAT(plan_for(k100Megabit, Objective::kTime).first, Each("powersgd(rank=2)"));
  const auto time = plan_for(k10Gigabit, Objective::kTime);
  EXPECT_THAT(time.first, Each("quantize(bits=4)"));
  EXPECT_LT(time.second.chosen.seconds, bytes.second.chosen.seconds);
  EXPECT_THAT(plan_for(kMemory, Objective::kTime).first, Each("identity"));
}

}  // namespace
}  // namespace thinwire
