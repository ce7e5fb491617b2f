// Measuring a link among ranks that are threads.
#include "thinwire/comm/link/link_probe.h"

#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::comm {
namespace {

using thinwire::testing::RankContext;
using thinwire::testing::run_ranks;

constexpr int kWorld = 3;

ProbeOptions quick() {
  ProbeOptions options;
  options.repeats = 2;
  options.largest = 1 << 16;
  return options;
}

TEST(LinkProbe, GivesEveryRankTheSameCosts) {
  std::vector<BackendLink> links(kWorld);
  std::vector<CodecCost> costs(kWorld);
  std::vector<std::vector<std::string>> parts(kWorld);
  run_ranks(kWorld, [&](RankContext& ctx) {
    const auto rank = static_cast<std::size_t>(ctx.rank);
    ProbeOptions options = quick();
    options.progress = [&](const std::string& part) { parts[rank].push_back(part); };
    links[rank] = probe_backend(*ctx.group, options);
    costs[rank] = probe_codec(*ctx.group, *make_codec("quantize(bits=4)"), 1 << 16, 2);
  });
  for (std::size_t rank = 1; rank < kWorld; ++rank) {
    EXPECT_EQ(links[rank], links[0]);
    EXPECT_EQ(costs[rank], costs[0]);
    EXPECT_EQ(parts[rank], parts[0]);
  }
  // Four collectives and the six directions of three pairs.
  EXPECT_EQ(parts[0].size(), kCollectives.size() + 6);
  for (const Collective collective : kCollectives) {
    EXPECT_GT(links[0].predict(collective, 1e6), 0) << name_of(collective);
  }
  ASSERT_EQ(links[0].pairs.size(), std::size_t{kWorld});
  for (std::size_t from = 0; from < kWorld; ++from) {
    for (std::size_t to = 0; to < kWorld; ++to) {
      const double seconds = links[0].pairs[from][to].predict(1e6);
      // No processor copies a megabyte in a microsecond.
      EXPECT_TRUE(from == to ? seconds == 0 : seconds > 1e-6) << from << " to " << to;
    }
  }
  EXPECT_GT(costs[0].compress, 0);
  EXPECT_GT(costs[0].decompress, 0);
  EXPECT_GT(costs[0].accumulate, 0);
}

TEST(LinkProbe, PairsCanBeLeftOut) {
  run_ranks(2, [&](RankContext& ctx) {
    ProbeOptions options = quick();
    options.pairs = false;
    EXPECT_TRUE(probe_backend(*ctx.group, options).pairs.empty());
  });
}

TEST(LinkProbe, OneRankHasNoLink) {
  run_ranks(1, [&](RankContext& ctx) {
    EXPECT_THROW(probe_backend(*ctx.group, quick()), InvalidArgument);
    EXPECT_GT(probe_codec(*ctx.group, *make_codec("onebit"), 4096, 1).compress, 0);
    EXPECT_THROW(probe_codec(*ctx.group, *make_codec("onebit"), 3, 1), InvalidArgument);
  });
}

TEST(LinkProbe, LargestOfEveryValue) {
  run_ranks(kWorld, [&](RankContext& ctx) {
    std::array<double, 2> values = {static_cast<double>(ctx.rank), -static_cast<double>(ctx.rank)};
    take_largest(*ctx.group, values);
    EXPECT_EQ(values[0], kWorld - 1);
    EXPECT_EQ(values[1], 0);
  });
}

}  // namespace
}  // namespace thinwire::comm
