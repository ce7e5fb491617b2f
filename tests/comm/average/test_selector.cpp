// The choice of a reduction: what it may choose, what it must choose on slow and fast networks, and
// how it follows sizes.
#include "thinwire/comm/average/selector.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire::comm {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kNumel = std::int64_t{1} << 20;
const char* const kSpecs[] = {"cast(bf16)",
                              "cast(fp8_e4m3)",
                              "quantize(bits=4)",
                              "topk(density=0.01)",
                              "onebit",
                              "ternary(density=0.05)",
                              "randomk(density=0.1)",
                              "terngrad",
                              "powersgd(rank=4)",
                              "identity",
                              "topk(density=1)"};

// A network of one rate and latency for everything.
BackendLink network(double bytes_per_second, double latency, int world) {
  BackendLink link;
  link.collectives.fill({latency, 1 / bytes_per_second});
  link.pairs.assign(
      static_cast<std::size_t>(world),
      std::vector<AlphaBeta>(static_cast<std::size_t>(world), {latency, 1 / bytes_per_second}));
  return link;
}

ReductionRequest request_of(const char* spec, std::int64_t side, int world = 4, int hosts = 4) {
  const std::array<std::int64_t, 2> shape = {side, side};
  ReductionRequest request;
  request.bytes = 4 * side * side;
  request.codec = use_of(*make_codec(spec), side * side, DType::kFloat32, shape);
  request.world = world;
  request.hosts = hosts;
  return request;
}

class EveryCodec : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Specs, EveryCodec, ::testing::ValuesIn(kSpecs));

TEST_P(EveryCodec, GetsOnlyWhatItsTraitsPermit) {
  for (const int world : {1, 2, 4, 8, 64}) {
    for (const int hosts : {1, 2, 4, 64}) {
      if (hosts > world) continue;
      for (const double rate : {1e7, 1e9, 1e11}) {
        const BackendLink link = network(rate, 1e-5, world);
        for (const BackendLink* model : {&link, static_cast<const BackendLink*>(nullptr)}) {
          ReductionRequest request = request_of(GetParam(), 1024, world, hosts);
          request.link = model;
          const ReductionChoice choice = select_reduction(request);
          if (!choice.compress) {
            EXPECT_EQ(choice.strategy, Strategy::kDense);
            EXPECT_EQ(choice.cost, choice.uncompressed_cost);
            continue;
          }
          EXPECT_NO_THROW(check_strategy(choice.strategy, GetParam(), request.codec, world, hosts))
              << name_of(choice.strategy);
          EXPECT_LE(choice.cost * kRequiredGain, choice.uncompressed_cost * (1 + 1e-12));
        }
      }
    }
  }
}

TEST_P(EveryCodec, NeverCostsMoreThanAWiderChoice) {
  // What is not allowed is not chosen, and each restriction can only raise the cost.
  ReductionRequest request = request_of(GetParam(), 1024, 8, 4);
  const ReductionChoice free = select_reduction(request);
  for (const Strategy only : kStrategies) {
    request.allowed = {only};
    const ReductionChoice choice = select_reduction(request);
    EXPECT_TRUE(!choice.compress || choice.strategy == only);
    EXPECT_GE(choice.cost, free.cost);
  }
}

TEST_P(EveryCodec, FasterNetworksNeverTurnCompressionOn) {
  // Along rising rates the answer goes from "compress" to "do not", once.
  bool compressed_before = true;
  for (double rate = 1e5; rate < 1e13; rate *= 2) {
    const BackendLink link = network(rate, 1e-6, 4);
    ReductionRequest request = request_of(GetParam(), 1024);
    request.link = &link;
    const bool compresses = select_reduction(request).compress;
    EXPECT_TRUE(compressed_before || !compresses) << rate;
    compressed_before = compresses;
  }
  EXPECT_FALSE(compressed_before) << "a network of 10 TB/s needs no codec of 1 GB/s";
}

TEST_P(EveryCodec, LargerTensorsCostMore) {
  const BackendLink link = network(1e9, 1e-5, 4);
  for (const BackendLink* model : {&link, static_cast<const BackendLink*>(nullptr)}) {
    double before = 0;
    for (std::int64_t side = 1; side <= 2048; side *= 2) {
      ReductionRequest request = request_of(GetParam(), side);
      request.link = model;
      const double cost = select_reduction(request).cost;
      EXPECT_GE(cost, before) << side;
      before = cost;
    }
  }
}

TEST_P(EveryCodec, IsNotWorthItAlone) {
  EXPECT_FALSE(select_reduction(request_of(GetParam(), 1024, 1, 1)).compress);
}

struct Expected {
  const char* spec;
  Strategy strategy;
};

class OnASlowNetwork : public ::testing::TestWithParam<Expected> {};

TEST_P(OnASlowNetwork, CompressesTheWayTheCodecWasMadeFor) {
  const BackendLink link = network(12.5e6, 1e-4, 4);  // 100 Mbit/s
  for (const BackendLink* model : {&link, static_cast<const BackendLink*>(nullptr)}) {
    ReductionRequest request = request_of(GetParam().spec, 1024);
    request.link = model;
    const ReductionChoice choice = select_reduction(request);
    ASSERT_TRUE(choice.compress);
    EXPECT_EQ(choice.strategy, GetParam().strategy) << name_of(choice.strategy);
  }
}

INSTANTIATE_TEST_SUITE_P(Codecs, OnASlowNetwork,
                         ::testing::Values(Expected{"quantize(bits=4)", Strategy::kScatterReduce},
                                           Expected{"onebit", Strategy::kScatterReduce},
                                           Expected{"cast(bf16)", Strategy::kScatterReduce},
                                           Expected{"topk(density=0.01)", Strategy::kSparse},
                                           Expected{"randomk(density=0.1)", Strategy::kDense},
                                           Expected{"powersgd(rank=4)", Strategy::kLowRank}));

TEST(Selector, OwnersTakeOverWhereManyRanksSendMuch) {
  // 64 ranks with 5 % of the entries each: everyone's payload to everyone is more than the tensor.
  const ReductionChoice choice = select_reduction(request_of("topk(density=0.05)", 1024, 64, 64));
  ASSERT_TRUE(choice.compress);
  EXPECT_EQ(choice.strategy, Strategy::kSparse);
}

TEST(Selector, SeveralRanksAHostShareItsCable) {
  ReductionRequest request = request_of("quantize(bits=4)", 1024, 16, 2);
  EXPECT_EQ(select_reduction(request).strategy, Strategy::kHierarchical);
  // By seconds: fast inside a host, slow between them.
  BackendLink link = network(12.5e6, 1e-4, 16);
  for (std::size_t from = 0; from < 16; ++from) {
    for (std::size_t to = 0; to < 16; ++to) {
      if (from / 8 == to / 8) link.pairs[from][to] = {1e-6, 1e-11};
    }
  }
  request.link = &link;
  EXPECT_EQ(select_reduction(request).strategy, Strategy::kHierarchical);
  // Without pairs nobody knows what a host's inside costs.
  link.pairs.clear();
  EXPECT_EQ(select_reduction(request).strategy, Strategy::kScatterReduce);
}

TEST(Selector, SlowCodecsAreNotWorthItWhereFastOnesAre) {
  const BackendLink link = network(2e9, 1e-5, 4);
  ReductionRequest request = request_of("quantize(bits=4)", 2048);
  request.link = &link;
  request.codec.cost = {5e-11, 5e-11, 5e-11};
  EXPECT_TRUE(select_reduction(request).compress);
  request.codec.cost = {5e-9, 5e-9, 5e-9};
  EXPECT_FALSE(select_reduction(request).compress);
}

TEST(Selector, WithoutARequiredGainTheFastestCompressedWayIsTaken) {
  const BackendLink fast = network(1e15, 0, 4);
  for (const char* spec : {"quantize(bits=4)", "topk(density=0.01)", "powersgd(rank=4)"}) {
    ReductionRequest request = request_of(spec, 1024);
    request.link = &fast;
    EXPECT_FALSE(select_reduction(request).compress) << spec;
    request.required_gain = 0;
    const ReductionChoice choice = select_reduction(request);
    EXPECT_TRUE(choice.compress) << spec;
    EXPECT_GT(choice.cost, choice.uncompressed_cost) << spec;
  }
}

TEST(Selector, TinyTensorsAreNotWorthTheirFrames) {
  EXPECT_FALSE(select_reduction(request_of("quantize(bits=4)", 4)).compress);
}

TEST(Selector, TakesTheMeasuredCostOfACodec) {
  LinkModel model;
  const CodecPtr codec = make_codec("quantize(bits=4)");
  model.codecs[codec->spec()] = {1, 2, 3};
  EXPECT_EQ(use_of(*codec, kNumel, DType::kFloat32, {}, &model).cost, (CodecCost{1, 2, 3}));
  const CodecPtr other = make_codec("onebit");
  EXPECT_EQ(use_of(*other, kNumel, DType::kFloat32, {}, &model).cost, CodecUse::kAssumedCost);
  // Entries that were not sent are not touched.
  const CodecUse sparse = use_of(*make_codec("topk(density=0.01)"), kNumel, DType::kFloat32, {});
  EXPECT_LT(sparse.cost.accumulate, CodecUse::kAssumedCost.accumulate / 10);
}

TEST(Selector, LowRankPayloadFollowsTheShape) {
  const CodecPtr codec = make_codec("powersgd(rank=4)");
  const std::array<std::int64_t, 2> shape = {100, 50};
  EXPECT_EQ(use_of(*codec, 5000, DType::kFloat32, shape).payload_bytes, 4 * 4 * 150);
  // One dimension cannot be factored.
  EXPECT_EQ(use_of(*codec, 5000, DType::kFloat32, {}).payload_bytes, 20000);
}

TEST(Selector, LowRankSendsItsFactorsInEveryIteration) {
  const BackendLink link = network(12.5e6, 1e-4, 4);
  for (const BackendLink* model : {&link, static_cast<const BackendLink*>(nullptr)}) {
    const auto cost_of = [&](const char* spec) {
      ReductionRequest request = request_of(spec, 1024);
      request.codec.cost = {};
      request.allowed = {Strategy::kLowRank};
      request.link = model;
      const ReductionChoice choice = select_reduction(request);
      EXPECT_TRUE(choice.compress) << spec;
      return choice.cost;
    };
    const double once = cost_of("powersgd(rank=4)");
    EXPECT_NEAR(cost_of("powersgd(rank=4, iterations=3)"), 3 * once, 1e-9 * once);
  }
  // What low rank cannot make smaller travels once.
  const CodecPtr codec = make_codec("powersgd(rank=4, iterations=3)");
  EXPECT_EQ(use_of(*codec, 5000, DType::kFloat32, {}).factor_bytes, 0);
  EXPECT_EQ(use_of(*codec, 5000, DType::kFloat32, {}).payload_bytes, 20000);
}

TEST(Selector, PowerSgdApproximatesTheMeanWhateverTheLatency) {
  for (const double latency : {1e-6, 1e-3, 3e-2}) {
    const BackendLink link = network(12.5e6, latency, 4);
    ReductionRequest request = request_of("powersgd(rank=1)", 1024);
    request.link = &link;
    const ReductionChoice choice = select_reduction(request);
    EXPECT_TRUE(choice.compress) << latency;
    EXPECT_EQ(choice.strategy, Strategy::kLowRank) << latency;
    // A caller that can do nothing else still gets it.
    request.allowed = {Strategy::kGatherReduce};
    EXPECT_EQ(select_reduction(request).strategy, Strategy::kGatherReduce);
  }
}

TEST(Selector, MeansOfFactorsAndPayloadsAreAllToAlls) {
  // A slow all_reduce takes nothing but the uncompressed way's speed.
  BackendLink link = network(12.5e6, 1e-4, 4);
  for (const char* spec : {"powersgd(rank=4)", "randomk(density=0.1)", "quantize(bits=4)"}) {
    ReductionRequest request = request_of(spec, 1024);
    request.link = &link;
    const double before = select_reduction(request).cost;
    BackendLink slow = link;
    slow.collectives[static_cast<std::size_t>(Collective::kAllReduce)].alpha = 1;
    request.link = &slow;
    EXPECT_EQ(select_reduction(request).cost, before) << spec;
    EXPECT_GT(select_reduction(request).uncompressed_cost, 1) << spec;
  }
}

TEST(Selector, ForcedStrategyThatCannotWork) {
  const ReductionRequest topk = request_of("topk(density=0.01)", 64);
  try {
    check_strategy(Strategy::kScatterReduce, "topk(density=0.01)", topk.codec, 4, 4);
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr("scatter_reduce cannot average topk(density=0.01)"));
    EXPECT_THAT(error.what(), HasSubstr("possible are gather_reduce, sparse"));
  }
  EXPECT_THROW(check_strategy(Strategy::kHierarchical, "topk", topk.codec, 6, 4), InvalidArgument);
  EXPECT_THROW(check_strategy(Strategy::kHierarchical, "topk", topk.codec, 4, 1), InvalidArgument);
  EXPECT_NO_THROW(check_strategy(Strategy::kHierarchical, "topk", topk.codec, 8, 4));
  const ReductionRequest powersgd = request_of("powersgd(rank=4)", 64);
  EXPECT_THROW(check_strategy(Strategy::kHierarchical, "powersgd", powersgd.codec, 8, 4),
               InvalidArgument);
}

TEST(Selector, NamesAreReadAsTheyAreWritten) {
  for (const Strategy strategy : kStrategies) {
    EXPECT_EQ(parse_strategy(name_of(strategy)), strategy);
  }
  try {
    parse_strategy("gather_reduse");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr("did you mean gather_reduce?"));
  }
}

TEST(Selector, ImpossibleJobs) {
  ReductionRequest request = request_of("onebit", 64);
  request.hosts = 5;
  EXPECT_THROW(select_reduction(request), InvalidArgument);
  request.hosts = 0;
  EXPECT_THROW(select_reduction(request), InvalidArgument);
  request = request_of("onebit", 64);
  request.bytes = -1;
  EXPECT_THROW(select_reduction(request), InvalidArgument);
}

}  // namespace
}  // namespace thinwire::comm
