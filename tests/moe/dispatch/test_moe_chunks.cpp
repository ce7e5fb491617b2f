// Rows that are sent once for several experts, and rows that travel in chunks: the same results as
// without, fewer bytes, and telemetry that says so.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <mutex>
#include <thread>

#include "thinwire/common/error.h"
#include "thinwire/moe/dispatch/route_chunks.h"
#include "thinwire/moe/dispatch/route_record.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::moe {
namespace {

using thinwire::testing::RankContext;
using thinwire::testing::RankOptions;
using thinwire::testing::run_ranks;

constexpr std::int64_t kDim = 6;

MoEOptions options_with(bool share, int chunks, std::int64_t experts = 7, std::int64_t k = 3) {
  MoEOptions options;
  options.router = {.dim = kDim, .experts = experts, .top_k = k};
  options.hidden = 5;
  options.share_rows = share;
  options.chunks = chunks;
  options.seed = 8;
  return options;
}

at::Tensor tokens_of(int rank, std::int64_t count) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(60 + rank));
  return at::randn({count, kDim}, generator, at::kDouble);
}

struct Results {
  std::vector<at::Tensor> tensors;  // output, gradients of tokens and of all parameters
  MoECounters counters;
  MoESummary summary;
};

Results run(const MoEOptions& options, RankContext& context, const at::Tensor& tokens) {
  MoELayer layer(options, context.group);
  layer.to(at::kDouble);
  const at::Tensor x = tokens.clone().requires_grad_();
  const MoEOutput result = layer.forward(x);
  const at::Tensor factor =
      at::arange(1, result.output.numel() + 1, at::kDouble).reshape(result.output.sizes()) * 0.1;
  ((result.output * factor + result.output.square()).sum() + result.loss).backward();
  Results all{{result.output.detach(), x.grad()}, result.counters, layer.summary()};
  for (const auto& parameter : layer.parameters()) all.tensors.push_back(parameter.grad());
  return all;
}

class SharedAndChunked : public ::testing::TestWithParam<std::tuple<int, bool, int>> {};

TEST_P(SharedAndChunked, EqualsOneRowForEveryPairInOnePiece) {
  const auto [ranks, share, chunks] = GetParam();
  for (const char* dedup : {"off", "lsh(hashes=2, radius=1)", "duplicates"}) {
    run_ranks(ranks, [&, share = share, chunks = chunks](RankContext& context) {
      // One rank without tokens; equal tokens among the others.
      at::Tensor x = tokens_of(context.rank, context.rank == 1 ? 0 : 13 + context.rank);
      if (x.size(0) > 5) x[5] = x[2];
      MoEOptions plain = options_with(false, 1);
      plain.dedup = parse_dedup(dedup);
      MoEOptions options = options_with(share, chunks);
      options.dedup = plain.dedup;
      const Results expected = run(plain, context, x);
      const Results actual = run(options, context, x);
      ASSERT_EQ(actual.tensors.size(), expected.tensors.size());
      for (std::size_t i = 0; i < expected.tensors.size(); ++i) {
        EXPECT_TRUE(at::allclose(actual.tensors[i], expected.tensors[i], 1e-10, 1e-10))
            << dedup << ", tensor " << i;
      }
      EXPECT_EQ(actual.counters.expert_rows, expected.counters.expert_rows);
      EXPECT_EQ(actual.counters.arrived_rows, expected.counters.arrived_rows);
      EXPECT_EQ(expected.counters.rows_sent, expected.counters.dedup.rows_sent);
      EXPECT_LE(actual.counters.rows_sent, expected.counters.rows_sent);
      if (!share) {
        EXPECT_EQ(actual.counters.rows_sent, expected.counters.rows_sent);
        EXPECT_EQ(actual.counters.wire.total(), expected.counters.wire.total());
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, SharedAndChunked,
                         ::testing::Combine(::testing::Values(2, 3, 4), ::testing::Bool(),
                                            ::testing::Values(1, 2, 5)));

TEST(SharedRows, ATokenGoesOnceToEachRank) {
  // All four experts on two ranks: every token is wanted by both experts of both ranks.
  run_ranks(2, [](RankContext& context) {
    const at::Tensor x = tokens_of(context.rank, 20);
    const Results shared = run(options_with(true, 1, 4, 4), context, x);
    const Results plain = run(options_with(false, 1, 4, 4), context, x);
    EXPECT_EQ(plain.counters.rows_sent, 80);
    EXPECT_EQ(shared.counters.rows_sent, 40);
    EXPECT_EQ(shared.summary.shared_rows, 40);
    EXPECT_EQ(shared.summary.rows_fraction(), 0.5);
    const auto bytes = [](const Results& results, Leg leg) {
      return results.summary.wire.rows[static_cast<std::size_t>(leg)];
    };
    for (const Leg leg : {Leg::kDispatch, Leg::kDispatchBackward}) {
      EXPECT_EQ(2 * bytes(shared, leg), bytes(plain, leg)) << name_of(leg);
    }
    for (const Leg leg : {Leg::kCombine, Leg::kCombineBackward}) {
      EXPECT_EQ(bytes(shared, leg), bytes(plain, leg)) << name_of(leg);
    }
    // Every row that leaves has its mask with it, in an element of its own.
    EXPECT_EQ(shared.summary.wire.counts, route_record_bytes() + 20 * 8);
    EXPECT_EQ(plain.summary.wire.counts, route_record_bytes() + 40 * 8);
    EXPECT_EQ(plain.summary.uncompressed_bytes,
              plain.summary.wire.total() - plain.summary.wire.counts);
    EXPECT_EQ(shared.summary.uncompressed_bytes, plain.summary.uncompressed_bytes);
  });
}

TEST(SharedRows, OnlyLonelyTokensAreShared) {
  const ExpertPlacement two(4, 2);
  // Experts 0 and 1 want rows with keys {1, 4} and {1, 3}; 2 and 3 {1} and {}.
  const auto sent = rows_to_send(two, {2, 2, 1, 0}, {1, 4, 1, 3, 1});
  ASSERT_EQ(sent.size(), 2u);
  EXPECT_EQ(sent[0].count, 3);
  EXPECT_EQ(sent[0].source, (std::vector<std::int32_t>{0, 2, 3, 1}));
  EXPECT_EQ(sent[1].count, 1);
  const auto plain = rows_to_send(two, {2, 2, 1, 0}, {});
  EXPECT_EQ(plain[0].count, 4);
  EXPECT_EQ(plain[0].source, (std::vector<std::int32_t>{0, 1, 2, 3}));
  EXPECT_THROW(rows_to_send(two, {2, 2, 1, 0}, {4, 1, 1, 3, 1}), InvalidArgument);
  EXPECT_THROW(rows_to_send(two, {2, 2, 1, 0}, {1, 4}), InvalidArgument);
  EXPECT_THROW(rows_to_send(two, {2, 2}, {}), InvalidArgument);
}

TEST(SharedRows, ManyExpertsNeedWiderMasks) {
  run_ranks(2, [](RankContext& context) {
    const at::Tensor x = tokens_of(context.rank, 9);
    const Results shared = run(options_with(true, 2, 60, 40), context, x);
    const Results plain = run(options_with(false, 1, 60, 40), context, x);
    EXPECT_EQ(shared.counters.rows_sent, 18);
    for (std::size_t i = 0; i < plain.tensors.size(); ++i) {
      EXPECT_TRUE(at::allclose(shared.tensors[i], plain.tensors[i], 1e-10, 1e-10)) << i;
    }
  });
}

TEST(Chunks, RowCodecsDoNotNoticeThem) {
  for (const char* rows : {"cast(bf16)", "quantize(bits=8)"}) {
    run_ranks(2, [&](RankContext& context) {
      const at::Tensor x = tokens_of(context.rank, 17);
      MoEOptions options = options_with(true, 1);
      options.rows = parse_rows(rows);
      options.dedup = parse_dedup("lsh(hashes=2, radius=1)");
      const Results one = run(options, context, x);
      options.chunks = 3;
      const Results three = run(options, context, x);
      for (std::size_t i = 0; i < one.tensors.size(); ++i) {
        EXPECT_TRUE(at::allclose(one.tensors[i], three.tensors[i], 1e-6, 1e-6)) << rows << i;
      }
      EXPECT_EQ(one.summary.wire.total(), three.summary.wire.total());
    });
  }
}

// A message takes more rows of bytes than it has rows, and masks lie beside the latter.
TEST(SharedRows, MasksFindTheirRowsInMessagesThatAreCodedTogether) {
  for (const int ranks : {1, 2, 3}) {
    run_ranks(ranks, [](RankContext& context) {
      const at::Tensor x = tokens_of(context.rank, 9);
      const Results plain = run(options_with(false, 1, 60, 40), context, x);
      for (const int chunks : {1, 3}) {
        MoEOptions options = options_with(true, chunks, 60, 40);
        options.rows = parse_rows("ecsq(bits=8)");
        const Results coded = run(options, context, x);
        for (std::size_t i = 0; i < plain.tensors.size(); ++i) {
          const at::Tensor difference = coded.tensors[i] - plain.tensors[i];
          EXPECT_LT(difference.norm().item<double>(),
                    0.1 * plain.tensors[i].norm().item<double>() + 1e-12)
              << i << " in " << chunks;
        }
      }
    });
  }
}

TEST(Chunks, StochasticCodecsRepeatThemselves) {
  for (const char* rows : {"quantize(bits=4, rounding=stochastic)", "ecsq(bits=3)"}) {
    run_ranks(2, [rows](RankContext& context) {
      MoEOptions options = options_with(true, 2);
      options.rows = parse_rows(rows);
      const at::Tensor x = tokens_of(context.rank, 17);
      const Results first = run(options, context, x);
      const Results second = run(options, context, x);
      for (std::size_t i = 0; i < first.tensors.size(); ++i) {
        EXPECT_TRUE(at::equal(first.tensors[i], second.tensors[i])) << i;
      }
    });
  }
}

TEST(Summary, CountsTrainingPassesOfAllLegs) {
  run_ranks(2, [](RankContext& context) {
    MoEOptions options = options_with(true, 1, 4, 2);
    options.dedup = parse_dedup("lsh(hashes=2, radius=1)");
    MoELayer layer(options, context.group);
    const at::Tensor x = tokens_of(context.rank, 40).to(at::kFloat);
    std::int64_t merged_rows = 0, sent_rows = 0;
    double worst = 0;
    MoESeconds forward;
    for (int step = 0; step < 3; ++step) {
      const MoEOutput result = layer.forward(x.clone().requires_grad_());
      result.output.sum().backward();
      merged_rows += result.counters.dedup.rows_sent;
      sent_rows += result.counters.rows_sent;
      worst = std::max(worst, result.counters.dedup.worst_radius);
      forward += result.counters.seconds;
    }
    const LegBytes trained = layer.wire_bytes();
    {
      const at::NoGradGuard no_grad;
      layer.forward(x);
    }
    EXPECT_GT(layer.wire_bytes().total(), trained.total());
    const MoESummary summary = layer.summary();
    EXPECT_EQ(summary.wire.total(), trained.total());
    EXPECT_EQ(summary.passes, 3);
    EXPECT_EQ(summary.merged_passes, 3);
    EXPECT_EQ(summary.rows, 240);
    EXPECT_EQ(summary.merged_rows, merged_rows);
    EXPECT_EQ(summary.merged_rows - summary.shared_rows, sent_rows);
    EXPECT_EQ(summary.rows_fraction(), static_cast<double>(sent_rows) / 240);
    EXPECT_EQ(summary.worst_radius, worst);
    EXPECT_GT(summary.mean_radius(), 0);
    EXPECT_LT(summary.mean_radius(), worst);
    EXPECT_EQ(summary.seconds.gate, forward.gate);
    EXPECT_EQ(summary.seconds.hash, forward.hash);
    MoESummary twice = summary;
    twice += summary;
    EXPECT_EQ(twice.wire.total(), 2 * summary.wire.total());
    EXPECT_EQ(twice.rows_fraction(), summary.rows_fraction());
    bool found = false;
    for (const auto& [name, value] : metric_fields(summary)) {
      if (name != "moe_bytes_dispatch") continue;
      found = true;
      EXPECT_EQ(std::get<std::int64_t>(value), summary.wire.rows[0]);
    }
    EXPECT_TRUE(found);
    EXPECT_NE(describe(summary, 3).find("3 of 3 passes"), std::string::npos);
    EXPECT_EQ(describe({}, 0), "");
  });
}

class SlowExpert : public Expert {
 public:
  static constexpr auto kPause = std::chrono::milliseconds(2);
  SlowExpert() : Expert("SlowExpert") {}
  at::Tensor forward(const at::Tensor& rows) override {
    std::this_thread::sleep_for(kPause);
    return rows * 2;
  }
};

TEST(Summary, ExpertSecondsAreThoseOfTheExperts) {
  MoEOptions options = options_with(true, 1, 2, 2);
  options.factory = [](std::int64_t) { return std::make_shared<SlowExpert>(); };
  MoELayer layer(options, {});
  const at::Tensor x = tokens_of(0, 4).to(at::kFloat).requires_grad_();
  const MoEOutput result = layer.forward(x);
  const double pauses = 2 * std::chrono::duration<double>(SlowExpert::kPause).count();
  EXPECT_GE(result.counters.seconds.experts, pauses);
  EXPECT_GE(layer.summary().seconds.experts, pauses);
}

TEST(Errors, ARankOutsideTheGroupIsMissedByTheOthers) {
  // Rank 1 made its layer without the group, so it never comes.
  RankOptions patience;
  patience.timeout = std::chrono::milliseconds(300);
  run_ranks(
      2,
      [](RankContext& context) {
        if (context.rank == 0) {
          try {
            MoELayer(options_with(true, 1), context.group);
            ADD_FAILURE() << "no error";
          } catch (const CommError& error) {
            EXPECT_EQ(error.rank(), 1);
            EXPECT_THAT(error.what(), ::testing::HasSubstr("comparing a mixture of experts"));
            EXPECT_THAT(error.what(), ::testing::HasSubstr("rank(s) 1 of 2 are dead or hung"));
          }
          return;
        }
        MoELayer layer(options_with(true, 1), {});
        const at::Tensor x = tokens_of(context.rank, 4).to(at::kFloat);
        EXPECT_EQ(layer.forward(x).output.size(0), 4);
      },
      patience);
}

}  // namespace
}  // namespace thinwire::moe
