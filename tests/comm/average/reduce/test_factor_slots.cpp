#include "thinwire/comm/average/reduce/factor_slots.h"

#include <gtest/gtest.h>

#include <cmath>

#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/tests/support/standard_normal.h"

namespace thinwire::comm {
namespace {

using testing::RankContext;
using testing::run_ranks;

constexpr std::size_t kColumns = 40, kLength = 300;
constexpr int kWorld = 2, kSteps = 6;

// Which sizes are expected of the columns, in the order of the buffer.
enum class Expected { kTrue, kEqual };

// The columns' sizes fall by half from one to the next of eight, and begin again.
float size_of_column(std::size_t c) {
  return std::ldexp(1.0f, -static_cast<int>(c % 8));
}

struct Outcome {
  double error = 0;  // squared, of the mean
  std::vector<float> mean, given_back;
};

// Of the last of a few exchanges of the same values.
Outcome exchange(RankContext& ctx, Expected expected) {
  const CodecPtr codec = make_codec("ecsq(bits=2)");
  std::vector<FactorSlots::Column> columns;
  std::vector<float> sizes;
  for (std::size_t c = 0; c < kColumns; ++c) {
    columns.push_back({c * kLength, kLength});
    sizes.push_back(expected == Expected::kTrue ? size_of_column(c) : 1);
  }
  const auto values_of = [](int rank) {
    auto values = thinwire::testing::standard_normal(kColumns * kLength, 7 + rank);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] *= size_of_column(i / kLength);
    return values;
  };
  Peers peers(*ctx.group);
  SharedSteps steps;
  FactorSlots mean(columns, *codec, peers, std::size_t{1} << 20, steps, "P");
  Outcome outcome;
  for (int step = 0; step < kSteps; ++step) {
    Workspace workspace;
    Refusal refusal;
    const ReductionContext context{.peers = &peers,
                                   .refusal = &refusal,
                                   .workspace = &workspace,
                                   .divisor = kWorld,
                                   .sequence = static_cast<std::uint64_t>(step),
                                   .step = static_cast<std::uint64_t>(step)};
    const LayerValues first{.id = 1, .name = "w"};
    std::vector<float> buffer = values_of(ctx.rank), lost(buffer.size());
    mean.start(context, first, buffer, lost, sizes);
    mean.advance();
    const Averaged averaged = mean.receive();
    EXPECT_TRUE(averaged.finite);
    mean.deliver(averaged.finite);
    mean.commit();
    outcome = {.mean = buffer, .given_back = values_of(ctx.rank)};
    for (std::size_t i = 0; i < lost.size(); ++i) outcome.given_back[i] -= lost[i];
  }
  const auto a = values_of(0), b = values_of(1);
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double off = outcome.mean[i] - (double{a[i]} + b[i]) / 2;
    outcome.error += off * off;
  }
  return outcome;
}

// What counts as sent by the ranks has the mean that all of them received.
TEST(FactorSlots, GivesBackWhatTheMeanDoesNotHold) {
  std::vector<Outcome> of_ranks(kWorld);
  run_ranks(kWorld, [&](RankContext& ctx) {
    of_ranks[static_cast<std::size_t>(ctx.rank)] = exchange(ctx, Expected::kTrue);
  });
  EXPECT_EQ(of_ranks[0].mean, of_ranks[1].mean);
  for (std::size_t i = 0; i < kColumns * kLength; ++i) {
    const double sent = (double{of_ranks[0].given_back[i]} + of_ranks[1].given_back[i]) / 2;
    ASSERT_NEAR(sent, of_ranks[0].mean[i], 1e-5) << "element " << i;
  }
  EXPECT_GT(of_ranks[0].error, 1) << "nothing was lost, so the test would prove nothing";
}

TEST(FactorSlots, ColumnsOfLikeSizeTogetherLoseLessAtEqualBits) {
  run_ranks(kWorld, [&](RankContext& ctx) {
    EXPECT_LT(exchange(ctx, Expected::kTrue).error, 0.85 * exchange(ctx, Expected::kEqual).error);
  });
}

}  // namespace
}  // namespace thinwire::comm
