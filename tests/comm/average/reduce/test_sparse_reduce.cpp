#include "thinwire/comm/average/reduce/sparse_reduce.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <random>

#include "thinwire/comm/average/selector.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/comm/average/averager_fixture.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::comm {
namespace {

using testing::layer_of;
using testing::LayerShapes;
using testing::random_bucket;
using testing::RankContext;
using testing::run_ranks;
using testing::uniform_plan;

// ---- entries as bytes --------------------------------------------------------------------------

SparseEntries round_trip(const LayeredEntries& entries, std::uint64_t numel, std::size_t* size) {
  std::vector<std::byte> bytes(max_entries_bytes(numel));
  *size = encode_entries(entries, numel, bytes);
  SparseEntries decoded;
  decode_entries(std::span(bytes).first(*size), numel, decoded);
  return decoded;
}

void expect_same(const SparseEntries& a, const SparseEntries& b) {
  EXPECT_EQ(a.indices, b.indices);
  ASSERT_EQ(a.values.size(), b.values.size());
  for (std::size_t i = 0; i < a.values.size(); ++i) {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(a.values[i]), std::bit_cast<std::uint32_t>(b.values[i]));
  }
}

TEST(SparseEntries, ComeBackBitForBitInTheSmallestForm) {
  std::mt19937 random(1);
  struct Kind {
    const char* name;
    std::function<float()> value;
    double bytes;  // of a value
  };
  const auto normal = [&] { return std::normal_distribution<float>()(random); };
  const Kind kinds[] = {
      {"any", normal, 4},
      {"half", [&] { return static_cast<float>(static_cast<at::Half>(normal())); }, 2},
      {"bfloat", [&] { return static_cast<float>(static_cast<at::BFloat16>(1e9f * normal())); }, 2},
      {"signs", [&] { return random() % 2 ? 0.3f : -0.3f; }, 0.125},
      {"nan", [&] { return std::numeric_limits<float>::quiet_NaN(); }, 0.125},
  };
  for (const Kind& kind : kinds) {
    for (const std::uint64_t numel : {1u, 2u, 31u, 1000u, 20000u}) {
      for (const unsigned every : {1u, 2u, 10u, 1000u}) {
        LayeredEntries entries;
        for (std::uint32_t i = 0; i < numel; ++i) {
          if (random() % every == 0) entries.add(i, kind.value());
        }
        std::size_t size = 0;
        expect_same(round_trip(entries, numel, &size), entries);
        const double values = kind.bytes * static_cast<double>(entries.size());
        EXPECT_LE(static_cast<double>(size), 5 + 4 * static_cast<double>(numel)) << kind.name;
        if (every == 10 && numel == 20000) {
          EXPECT_LE(static_cast<double>(size),
                    values + 0.7 * static_cast<double>(entries.size()) + 32)
              << kind.name;
        }
      }
    }
  }
}

TEST(SparseEntries, RefuseWhatNobodyWrites) {
  LayeredEntries entries;
  for (std::uint32_t i = 0; i < 50; ++i) entries.add(7 * i, 1.0f + static_cast<float>(i) * 1e-3f);
  std::vector<std::byte> bytes(max_entries_bytes(400));
  bytes.resize(encode_entries(entries, 400, bytes));
  SparseEntries decoded;
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(decode_entries(std::span(bytes).first(size), 400, decoded), FrameError) << size;
  }
  auto longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_THROW(decode_entries(longer, 400, decoded), FrameError);
  EXPECT_THROW(decode_entries(bytes, 40, decoded), FrameError) << "more entries than elements";
  auto form = bytes;
  form[4] = std::byte{5};
  EXPECT_THROW(decode_entries(form, 400, decoded), FrameError);
  // Whatever the bytes are: an answer within bounds or the named error.
  std::mt19937 random(2);
  for (int trial = 0; trial < 20000; ++trial) {
    auto damaged = bytes;
    for (unsigned k = 0; k <= random() % 3; ++k) {
      damaged[random() % std::min<std::size_t>(damaged.size(), 60)] =
          static_cast<std::byte>(random());
    }
    try {
      decode_entries(damaged, 400, decoded);
      for (const std::uint32_t index : decoded.indices) EXPECT_LT(index, 400u);
    } catch (const FrameError&) {
    }
  }
}

// ---- the reduction -----------------------------------------------------------------------------

// Where nothing is kept for the next step, nothing may be left out.
TEST(SparseReduce, GivesWhatGatherReduceGivesWithoutASecondResidual) {
  const LayerShapes shapes = {{"a", {64, 33}}, {"b", {5000}}, {"c", {1}}};
  for (const char* spec :
       {"topk(density=0.1, second_residual=off)", "topk(density=0.6, error_feedback=off)",
        "topk(density=0.02, values=fp16, error_feedback=off)",
        "topk(density=0.02, values=coded, second_residual=off)",
        "ternary(density=0.1, second_residual=off)"}) {
    for (const int world : {1, 2, 3, 4}) {
      run_ranks(world, [&](RankContext& ctx) {
        BucketAverager gather(ctx.group, {.strategy = Strategy::kGatherReduce});
        BucketAverager owners(ctx.group, {.strategy = Strategy::kSparse});
        for (int step = 0; step < 3; ++step) {
          Bucket a = random_bucket(shapes, static_cast<std::uint64_t>(step), ctx.rank);
          Bucket b = random_bucket(shapes, static_cast<std::uint64_t>(step), ctx.rank);
          gather.average(a, uniform_plan(shapes, spec), step);
          owners.average(b, uniform_plan(shapes, spec), step);
          EXPECT_TRUE(at::equal(a.buffer, b.buffer)) << spec << " on " << world;
        }
      });
    }
  }
}

TEST(SparseReduce, IsChosenWhereItSendsLess) {
  // One and a half payloads, whatever the number of ranks, against one for every other rank.
  const auto owners_send_less = [](std::int64_t numel, std::int64_t entries,
                                   std::int64_t payload_bytes, int world) {
    const CodecUse use = {.facts = {.form = CodecFacts::Form::kSparse},
                          .numel = numel,
                          .payload_bytes = payload_bytes,
                          .entries = entries};
    return usual_strategy(use, world, 0) == Strategy::kSparse;
  };
  for (const int world : {1, 2}) EXPECT_FALSE(owners_send_less(1'000'000, 10'000, 50'000, world));
  for (const int world : {3, 4, 64}) {
    EXPECT_TRUE(owners_send_less(1'000'000, 10'000, 50'000, world));
    EXPECT_TRUE(owners_send_less(1'000'000, 100'000, 100'000, world)) << "signs";
  }
  EXPECT_TRUE(owners_send_less(1'000'000, 900'000, 4'500'000, 2)) << "no more means than elements";
  EXPECT_FALSE(owners_send_less(0, 0, 0, 4));

  // What is chosen is what sends less, also when it is done.
  const LayerShapes shapes = {{"w", {20000}}};
  for (const char* spec : {"topk(density=0.02)", "topk(density=0.5)", "ternary(density=0.3)"}) {
    run_ranks(4, [&](RankContext& ctx) {
      const auto bytes = [&](std::optional<Strategy> strategy) {
        AveragerOptions options;
        options.strategy = strategy;
        BucketAverager averager(ctx.group, options);
        Bucket bucket = random_bucket(shapes, 1, ctx.rank);
        averager.average(bucket, uniform_plan(shapes, spec), 0);
        return averager.traffic().sent_bytes;
      };
      EXPECT_EQ(bytes({}), std::min(bytes(Strategy::kGatherReduce), bytes(Strategy::kSparse)))
          << spec;
    });
  }
}

// What each rank brings is its own, so that hardly anything meets; or all bring the same.
TEST(SparseReduce, BytesOfARankAreTheSameOnAnyNumberOfRanks) {
  const LayerShapes shapes = {{"a", {200, 100}}, {"b", {40000}}};
  for (const char* spec : {"topk(density=0.05)", "topk(density=0.05, values=coded)"}) {
    for (const bool alike : {false, true}) {
      std::map<int, double> bytes;
      for (const int world : {2, 4, 8, 16}) {
        std::mutex mutex;
        run_ranks(world, [&](RankContext& ctx) {
          BucketAverager averager(ctx.group, {.strategy = Strategy::kSparse});
          constexpr int kSteps = 4;
          std::uint64_t before = 0;
          for (int step = 0; step <= kSteps; ++step) {
            if (step == 1) before = averager.traffic().sent_bytes;
            Bucket bucket =
                random_bucket(shapes, static_cast<std::uint64_t>(step), alike ? 0 : ctx.rank);
            averager.average(bucket, uniform_plan(shapes, spec), step);
          }
          const auto sent = static_cast<double>(averager.traffic().sent_bytes - before) / kSteps;
          const std::lock_guard lock(mutex);
          bytes[world] = std::max(bytes[world], sent);
        });
      }
      // 3,000 entries of 32 or 2 bits and 6 of index, and frames, tables and sizes for each peer.
      const double payload =
          3000 * (std::string(spec).find("coded") != std::string::npos ? 1.0 : 4.8);
      for (const auto& [world, sent] : bytes) {
        const double peers = 2.0 * (world - 1) * 180;
        EXPECT_LE(sent, 2.2 * payload + peers) << spec << " on " << world;
        if (alike || payload < 10000) continue;
        EXPECT_NEAR(sent - 2.0 * (world - 1) * 70, bytes[2] - 140, 0.1 * bytes[2])
            << spec << " on " << world;
      }
    }
  }
}

// Layers of other sizes than each other's meet in one payload, each with its own levels.
TEST(SparseReduce, CodedValuesKeepTheirLayersLevels) {
  LayerShapes shapes;
  for (int i = 0; i < 8; ++i) shapes.push_back({"layer" + std::to_string(i), {4000}});
  run_ranks(3, [&](RankContext& ctx) {
    const auto scale_of = [](std::size_t layer) { return std::pow(10.0, -double(layer)); };
    const auto sent = [&](const char* spec) {
      BucketAverager averager(ctx.group, {.strategy = Strategy::kSparse});
      for (int step = 0; step < 4; ++step) {
        Bucket bucket = random_bucket(shapes, static_cast<std::uint64_t>(step), ctx.rank);
        for (std::size_t i = 0; i < shapes.size(); ++i) layer_of(bucket, i) *= scale_of(i);
        averager.average(bucket, uniform_plan(shapes, spec), step);
        for (std::size_t i = 0; i < shapes.size(); ++i) {
          EXPECT_LT(layer_of(bucket, i).abs().max().item<double>(), 6 * scale_of(i)) << spec;
        }
      }
      return static_cast<double>(averager.traffic().sent_bytes) / 4;
    };
    // 400 entries of 10 % a layer, one and a half times: half a byte of index each, 2 or 32 bits
    // of value, frames and levels.
    const double exact = sent("topk(density=0.1)"), coded = sent("topk(density=0.1, values=coded)");
    EXPECT_LT(coded, 1.5 * 3200 * 0.95 + 1500);
    EXPECT_GT(exact, 3 * coded);
  });
}

// Where all ranks send the same elements the union does not grow with their number.
TEST(SparseReduce, EqualSupportsCostTheirUnion) {
  const LayerShapes shapes = {{"w", {40000}}};
  run_ranks(4, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group, {.strategy = Strategy::kSparse});
    Bucket bucket = random_bucket(shapes, 1, 0);
    bucket.buffer *= static_cast<double>(1 + ctx.rank);
    averager.average(bucket, uniform_plan(shapes, "topk(density=0.05)"), 0);
    EXPECT_LE(averager.traffic().sent_bytes, 2.0 * 2000 * 0.75 * 4.9 + 4 * 3 * (64 + 32));
  });
}

}  // namespace
}  // namespace thinwire::comm
