#include "thinwire/comm/predict/exchange_ops.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

#include "thinwire/comm/average/selector.h"
#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::comm {
namespace {

using thinwire::testing::error_of;

BackendLink link_of_one() {
  BackendLink link;
  for (AlphaBeta& cost : link.collectives) cost = {.alpha = 1e-4, .beta = 1e-8};
  return link;
}

constexpr std::array<std::int64_t, 2> kShape = {1024, 1024};
constexpr double kBytes = 4.0 * kShape[0] * kShape[1];

BucketUse use_of(const char* spec, int world) {
  const CodecPtr codec = make_codec(Spec::parse(spec));
  BucketUse use{.codec = comm::use_of(*codec, kShape[0] * kShape[1], DType::kFloat32, kShape),
                .compressed_bytes = kBytes};
  use.codec.cost = {1e-9, 2e-9, 3e-9};
  use.strategy = usual_strategy(use.codec, world, kFrameHeaderBytes);
  return use;
}

// The bytes are those of the table of reductions, whatever the parts in which they travel; sizes
// that go before frames are not counted there.
TEST(ExchangeOps, SendWhatTheTableOfReductionsSays) {
  for (const char* spec : {"quantize(bits=4)", "onebit", "topk(density=0.01)", "powersgd(rank=4)",
                           "randomk(density=0.05)"}) {
    for (const int world : {2, 4, 16}) {
      const BucketUse use = use_of(spec, world);
      const ExchangeOps ops = exchange_ops(use, {.world = world}, link_of_one());
      const double table = sent_bytes(
          *use.strategy, use.codec,
          {.tensor_bytes = kBytes, .world = world, .hosts = 1, .frame_bytes = kFrameHeaderBytes});
      // The table leaves out the frames of the factors' means.
      const double tolerance = use.strategy == Strategy::kLowRank ? 0.1 : 0.02;
      EXPECT_NEAR(ops.sent_bytes() / table, 1, tolerance) << spec << " on " << world << " ranks";
    }
  }
}

// A bucket of few blocks has few owners: frames go to them alone, and everything goes through them.
TEST(ExchangeOps, AmongMoreRanksThanBlocksSomeOwnNothing) {
  constexpr std::int64_t kNumel = 1 << 16;
  const CodecPtr codec = make_codec(Spec::parse("quantize(bits=4, bucket=1024)"));
  BucketUse use{.strategy = Strategy::kScatterReduce,
                .codec = comm::use_of(*codec, kNumel, DType::kFloat32, {}),
                .compressed_bytes = 4.0 * kNumel};
  ASSERT_EQ(use.codec.blocks, 64);
  const auto sent = [&](int world) {
    return exchange_ops(use, {.world = world}, link_of_one()).sent_bytes();
  };
  const double payload = static_cast<double>(use.codec.payload_bytes);
  EXPECT_NEAR(sent(32), 2 * 31.0 / 32 * (payload + 32 * kFrameHeaderBytes), 1);
  EXPECT_NEAR(sent(10000), 2 * (payload + 64 * kFrameHeaderBytes), 0.001 * payload);
  EXPECT_NEAR(sent_bytes(Strategy::kScatterReduce, use.codec,
                         {.tensor_bytes = use.compressed_bytes,
                          .world = 10000,
                          .hosts = 1,
                          .frame_bytes = kFrameHeaderBytes}),
              sent(10000), 1);
  for (const ExchangeOp& op : exchange_ops(use, {.world = 640}, link_of_one()).begin) {
    if (op.kind != ExchangeOp::Kind::kPost) continue;
    EXPECT_DOUBLE_EQ(op.per_byte, 10 * 1e-8) << "each of 64 of 640 ranks gets ten parts";
  }
}

TEST(ExchangeOps, EveryMessageIsWaitedForOnceAndAfterItsPost) {
  for (const char* spec : {"quantize(bits=4)", "topk(density=0.01)", "powersgd(rank=4)"}) {
    PredictedPlace place{.world = 4};
    place.chunk_bytes = kBytes / 3;
    const ExchangeOps ops = exchange_ops(use_of(spec, 4), place, link_of_one());
    std::set<int> posted, arrived;
    for (const auto* part : {&ops.begin, &ops.advance, &ops.finish}) {
      for (const ExchangeOp& op : *part) {
        if (op.kind == ExchangeOp::Kind::kPost) {
          EXPECT_TRUE(posted.insert(op.message).second) << spec;
        }
        if (op.kind != ExchangeOp::Kind::kWait) continue;
        EXPECT_TRUE(posted.contains(op.message)) << spec;
        EXPECT_TRUE(arrived.insert(op.message).second) << spec;
      }
    }
    EXPECT_EQ(posted, arrived) << spec;
    EXPECT_FALSE(posted.empty()) << spec;
  }
}

TEST(ExchangeOps, ScatterReduceCodesOnceAndItsOwnSliceAgain) {
  const ExchangeOps ops = exchange_ops(use_of("quantize(bits=4)", 4), {.world = 4}, link_of_one());
  EXPECT_NEAR(ops.coding_seconds(), kBytes * (1e-9 + 3e-9 + 1e-9 / 4 + 2e-9), 1e-9);
}

TEST(ExchangeOps, UncompressedIsOneAllReduce) {
  const ExchangeOps ops = exchange_ops({.strategy = {}, .codec = {}, .uncompressed_bytes = 1e6},
                                       {.world = 4}, link_of_one());
  EXPECT_DOUBLE_EQ(ops.sent_bytes(), 1.5e6);
  ASSERT_EQ(ops.begin.size(), 2u);
  EXPECT_DOUBLE_EQ(ops.begin[1].seconds, 1e-4);
  EXPECT_TRUE(ops.advance.empty());
}

TEST(ExchangeOps, AloneNothingIsDone) {
  const ExchangeOps ops = exchange_ops(use_of("onebit", 2), {.world = 1}, link_of_one());
  EXPECT_EQ(ops.sent_bytes(), 0);
  EXPECT_EQ(ops.coding_seconds(), 0);
  EXPECT_NE(error_of([] { exchange_ops({}, {.world = 2, .hosts = 3}, {}); }), "no error");
}

}  // namespace
}  // namespace thinwire::comm
