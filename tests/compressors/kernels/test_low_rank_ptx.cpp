// The kernels that average matrices by their factors in GPU memory as nvcc compiles them: their PTX
// is executed on the host for two ranks, with every access checked. Factors, means and what is lost
// have the bits of low_rank.h; every barrier that is taken out is found.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "thinwire/common/text.h"
#include "thinwire/compressors/codecs/powersgd.h"
#include "thinwire/compressors/kernels/float_arrays.h"
#include "thinwire/compressors/kernels/low_rank.h"
#include "thinwire/compressors/kernels/low_rank_task.h"
#include "thinwire/tests/compressors/codecs/payloads.h"
#include "thinwire/tests/support/ptx/barriers.h"
#include "thinwire/tests/support/ptx/machine.h"
#include "thinwire/tests/support/ptx/named_kernels.h"

namespace thinwire::testing {
namespace {

using namespace kernels;

constexpr std::uint32_t kWorld = 2;
constexpr std::uint64_t kSeed = 5, kStep = 3;

struct Layer {
  std::uint32_t rows, cols, rank;
  bool keeps_loss = true, coded = false, leftover = false, orphan = false;
  std::int64_t reset_every = 0;
};
// Those with factors first.
constexpr Layer kLayers[] = {
    {40, 70, 3, true, true, false, true},
    {19, 41, 9, true, false, true, false, 3},
    {6, 1030, 1, false},
    {1, 4500, 0, true, false, true},
    {1, 9, 0, false},
};
constexpr std::uint32_t kMatrices = 3;

std::uint64_t parts_of(std::uint64_t count, std::uint64_t part) {
  return (count + part - 1) / part;
}

const std::vector<ptx::Kernel>& compiled() {
  static const std::vector<ptx::Kernel> kernels = ptx::kernels_of_file(THINWIRE_LOW_RANK_PTX);
  return kernels;
}

using Lists = std::vector<std::vector<float>>;

// One rank's memory.
struct Rank {
  std::vector<float> bucket, p, q, own_q;
  Lists residuals, leftovers, orphans, lost, lost_means, starts;
  std::vector<LowRankLayer> layers;
  ExchangeWords words{0, 0};
  std::uint64_t row_tiles = 0, column_tiles = 0, mean_tiles = 0;

  explicit Rank(std::uint32_t number);
};

Rank::Rank(std::uint32_t number) {
  std::uint64_t value = 3, p_numel = 0, q_numel = 0;
  for (const Layer& layer : kLayers) {
    const std::uint64_t numel = std::uint64_t{layer.rows} * layer.cols;
    const bool has_factors = layer.rank > 0;
    const auto random = [&](std::uint32_t seed, bool is_there) {
      return normal_values(is_there ? numel : 0, seed + number, 0.1f);
    };
    residuals.push_back(random(30, layer.keeps_loss));
    leftovers.push_back(random(40, layer.leftover));
    orphans.push_back(random(50, layer.orphan));
    lost.emplace_back(layer.coded ? layer.cols * layer.rank : 0);
    lost_means.emplace_back(lost.back().size());
    // One column more than asked for; the second one is not known.
    starts.push_back(normal_values(has_factors ? layer.cols * (layer.rank + 1) : 0, 7));
    if (layer.rank > 1) std::fill_n(starts.back().begin() + layer.cols, layer.cols, -0.0f);
    const auto data = [](std::vector<float>& values) {
      return values.empty() ? nullptr : values.data();
    };
    LowRankLayer made{};
    made.rows = layer.rows;
    made.cols = layer.cols;
    made.rank = layer.rank;
    made.layer_id = static_cast<std::uint32_t>(7 + layers.size());
    made.value = value;
    made.p = p_numel;
    made.q = q_numel;
    made.first_row_tile = row_tiles;
    made.first_column_tile = column_tiles;
    made.first_mean_tile = mean_tiles;
    made.decay = 0.5f;
    made.reset_every = layer.reset_every;
    made.residual = data(residuals.back());
    made.orphan = data(orphans.back());
    made.leftover = data(leftovers.back());
    made.keeps_loss = layer.keeps_loss;
    made.lost_q = data(lost.back());
    made.lost_mean_q = data(lost_means.back());
    made.start = data(starts.back());
    made.start_columns = layer.rank + 1;
    layers.push_back(made);
    value += numel;
    p_numel += has_factors ? layer.rows * layer.rank : numel;
    q_numel += layer.cols * layer.rank;
    row_tiles += has_factors ? parts_of(layer.rows, kRowsOfTile) : parts_of(numel, kUnfactoredTile);
    if (has_factors) column_tiles += parts_of(layer.cols, kColumnsOfTile);
    mean_tiles += parts_of(layer.rows, kMeanRows) * parts_of(layer.cols, kMeanColumns);
  }
  bucket = normal_values(value, 10 + number);
  p.resize(p_numel);
  q.resize(q_numel);
  own_q.resize(q_numel);
}

LowRankTask task_of(Rank& rank) {
  LowRankTask task{};
  task.layers = rank.layers.data();
  task.matrices = kMatrices;
  task.count = static_cast<std::uint32_t>(std::size(kLayers));
  task.row_tiles = rank.row_tiles;
  task.column_tiles = rank.column_tiles;
  task.mean_tiles = rank.mean_tiles;
  task.dtype = DType::kFloat32;
  task.values = task.matrix = rank.bucket.data();
  task.ranks = kWorld;
  task.seed = kSeed;
  task.step = kStep;
  task.corrects = true;
  task.p = rank.p.data();
  task.q = rank.q.data();
  task.own_q = rank.own_q.data();
  task.words = &rank.words;
  return task;
}

// The mean over the ranks, of which coding loses a little that is known.
void average(std::vector<Rank>& ranks, std::vector<float> Rank::*values) {
  std::vector<float> mean = ranks[0].*values;
  add_scaled(mean.data(), (ranks[1].*values).data(), 1, mean);
  divide(mean, kWorld);
  for (Rank& rank : ranks) rank.*values = mean;
}
void lose_some(std::vector<Rank>& ranks) {
  const auto fill = [](std::vector<float>& values, std::uint32_t seed) {
    std::ranges::copy(normal_values(values.size(), seed, 0.01f), values.begin());
  };
  for (std::uint32_t r = 0; r < kWorld; ++r) fill(ranks[r].lost[0], 60 + r);
  fill(ranks[1].lost_means[0], 62);
}

struct Machine {
  const std::vector<ptx::Kernel>& kernels = compiled();
  std::uint64_t seed = 1;
  std::uint64_t most_blocks = 64;  // of a launch: fewer take several parts each

  // What is sent to a kernel may be touched by it, and nothing else.
  void launch(Rank& rank, const std::string& name, const LowRankTask& task,
              std::uint64_t blocks) const {
    ptx::GlobalMemory memory;
    const auto add = [&](auto& values) {
      if (!values.empty()) memory.add(values.data(), values.size() * sizeof(values[0]));
    };
    for (auto* lists : {&rank.residuals, &rank.leftovers, &rank.orphans, &rank.lost,
                        &rank.lost_means, &rank.starts}) {
      for (auto& values : *lists) add(values);
    }
    for (auto* floats : {&rank.bucket, &rank.p, &rank.q, &rank.own_q}) add(*floats);
    add(rank.layers);
    memory.add(&rank.words, sizeof rank.words);
    ptx::run(ptx::kernel_of(kernels, name),
             {.blocks = static_cast<std::uint32_t>(std::min(blocks, most_blocks)),
              .threads = 256,
              .parameters = std::as_bytes(std::span(&task, 1)),
              .seed = seed},
             memory);
  }
  void multiply(Rank& rank, const LowRankTask& task) const {
    launch(rank, ptx::instance("low_rank_multiply_kernel", "DType", 0), task, task.row_tiles);
  }
  // Two rounds.
  void run(std::vector<Rank>& ranks) const {
    for (Rank& rank : ranks) {
      launch(rank, "low_rank_start_kernel", task_of(rank), kMatrices);
      multiply(rank, task_of(rank));
    }
    for (int round = 0; round < 2; ++round) {
      average(ranks, &Rank::p);
      for (Rank& rank : ranks) {
        launch(rank, "low_rank_orthonormal_kernel", task_of(rank), kMatrices);
        launch(rank, "low_rank_transposed_kernel", task_of(rank), rank.column_tiles);
      }
      average(ranks, &Rank::q);
      if (round == 1) break;
      for (Rank& rank : ranks) {
        LowRankTask task = task_of(rank);
        task.of_q = true;
        launch(rank, "low_rank_orthonormal_kernel", task, kMatrices);
        task.corrects = false;
        task.row_tiles = rank.layers[kMatrices].first_row_tile;
        multiply(rank, task);
      }
    }
    lose_some(ranks);
    for (Rank& rank : ranks) {
      launch(rank, "low_rank_sent_kernel", task_of(rank), kMatrices);
      launch(rank, ptx::instance("low_rank_replace_kernel", "DType", 0), task_of(rank),
             rank.mean_tiles);
      launch(rank, "low_rank_keep_kernel", task_of(rank), kMatrices);
    }
  }
};

// Calls visit(values of M, P, Q, own Q, layer) of a rank's matrices.
template <typename Visit>
void for_each_matrix(Rank& rank, const Visit& visit) {
  for (std::uint32_t l = 0; l < kMatrices; ++l) {
    const LowRankLayer& layer = rank.layers[l];
    visit(rank.bucket.data() + layer.value, rank.p.data() + layer.p, rank.q.data() + layer.q, l);
  }
}

// The same in the words of LowRank.
void run_on_cpu(std::vector<Rank>& ranks) {
  for (Rank& rank : ranks) {
    for (std::size_t l = 0; l < std::size(kLayers); ++l) {
      const LowRankLayer& layer = rank.layers[l];
      const auto values = std::span(rank.bucket).subspan(layer.value, layer.rows * layer.cols);
      if (layer.leftover) add_scaled(values.data(), layer.leftover, 1, values);
      if (layer.orphan) add_scaled(values.data(), layer.orphan, kWorld, values);
      if (layer.keeps_loss && layer.reset_every == 0) {
        add_scaled(values.data(), layer.residual, layer.decay, values);
      }
      if (layer.rank == 0) std::ranges::copy(values, rank.p.begin() + std::ptrdiff_t(layer.p));
    }
    for_each_matrix(rank, [&](float* m, float* p, float* q, std::uint32_t l) {
      const LowRankLayer& layer = rank.layers[l];
      std::vector<float> start = rank.starts[l];
      start.resize(layer.cols * layer.rank);
      resize_factor({.seed = kSeed, .step = kStep, .layer = layer.layer_id},
                    static_cast<std::int64_t>(layer.cols), layer.rank, layer.rank, start);
      std::ranges::copy(start, q);
      low_rank_multiply(m, layer.rows, layer.cols, q, layer.rank, p);
    });
  }
  for (int round = 0; round < 2; ++round) {
    average(ranks, &Rank::p);
    for (Rank& rank : ranks) {
      for_each_matrix(rank, [&](float* m, float* p, float* q, std::uint32_t l) {
        const LowRankLayer& layer = rank.layers[l];
        orthogonalize(p, layer.rows, layer.rank);
        low_rank_multiply_transposed(m, layer.rows, layer.cols, p, layer.rank, q);
      });
      rank.own_q = rank.q;
    }
    average(ranks, &Rank::q);
    if (round == 1) break;
    for (Rank& rank : ranks) {
      for_each_matrix(rank, [&](float* m, float* p, float* q, std::uint32_t l) {
        const LowRankLayer& layer = rank.layers[l];
        orthogonalize(q, layer.cols, layer.rank);
        low_rank_multiply(m, layer.rows, layer.cols, q, layer.rank, p);
      });
    }
  }
  lose_some(ranks);
  for (Rank& rank : ranks) {
    const std::span<float> lost = rank.lost[0];
    if (!rank.lost_means[0].empty() && &rank == &ranks[1]) {
      std::vector<float> both(lost.begin(), lost.end());
      add_scaled(both.data(), rank.lost_means[0].data(), kWorld, both);
      subtract(std::span(rank.own_q).first(both.size()), both.data());
    } else {
      subtract(std::span(rank.own_q).first(lost.size()), lost.data());
    }
    for_each_matrix(rank, [&](float* m, float* p, float* q, std::uint32_t l) {
      const LowRankLayer& layer = rank.layers[l];
      std::vector<float> left(layer.rows * layer.cols);
      low_rank_replace(p, rank.own_q.data() + layer.q, q, layer.rows, layer.cols, layer.rank, m,
                       left.data());
      if (layer.keeps_loss) rank.residuals[l] = left;
      std::vector<float>& start = rank.starts[l];
      std::ranges::fill(start, -0.0f);
      std::copy_n(q, layer.cols * layer.rank, start.begin());
    });
    for (std::size_t l = kMatrices; l < std::size(kLayers); ++l) {
      const LowRankLayer& layer = rank.layers[l];
      std::copy_n(rank.p.begin() + std::ptrdiff_t(layer.p), layer.cols,
                  rank.bucket.begin() + std::ptrdiff_t(layer.value));
      std::ranges::fill(rank.residuals[l], 0.0f);
    }
  }
}

std::vector<Rank> make_ranks() {
  std::vector<Rank> ranks;
  for (std::uint32_t r = 0; r < kWorld; ++r) ranks.emplace_back(r);
  return ranks;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

// Empty where all ranks have what the CPU has, else what they have not.
std::string difference(const Machine& machine) {
  static const std::vector<Rank> expected = [] {
    std::vector<Rank> ranks = make_ranks();
    run_on_cpu(ranks);
    return ranks;
  }();
  std::vector<Rank> ranks = make_ranks();
  machine.run(ranks);
  for (std::size_t r = 0; r < kWorld; ++r) {
    const Rank &found = ranks[r], &right = expected[r];
    const std::string of_rank = concat(" of rank ", r);
    if (!same_bits(found.p, right.p)) return "P" + of_rank;
    if (!same_bits(found.q, right.q)) return "Q" + of_rank;
    if (!same_bits(found.own_q, right.own_q)) return "what was sent" + of_rank;
    if (!same_bits(found.bucket, right.bucket)) return "mean" + of_rank;
    for (std::size_t l = 0; l < std::size(kLayers); ++l) {
      if (!same_bits(found.residuals[l], right.residuals[l])) return "residual" + of_rank;
      if (!same_bits(found.starts[l], right.starts[l])) return "next start" + of_rank;
    }
  }
  return {};
}

TEST(LowRankPtx, FactorsMeansAndResidualsEqualTheCpus) {
  EXPECT_EQ(difference({}), "");
  EXPECT_EQ(difference({.seed = 2, .most_blocks = 1}), "");
}

TEST(LowRankPtx, AStepThatDoesNotCountChangesNothingThatIsKept) {
  for (const bool refused : {false, true}) {
    std::vector<Rank> ranks = make_ranks();
    const auto residuals = ranks[0].residuals, starts = ranks[0].starts;
    for (Rank& rank : ranks) (refused ? rank.words.refused : rank.words.not_finite) = 1;
    Machine{}.run(ranks);
    EXPECT_EQ(ranks[0].residuals, residuals);
    EXPECT_EQ(ranks[0].starts, starts);
  }
}

TEST(LowRankPtx, WhatMayOverflowInAProductIsNotFinite) {
  std::vector<Rank> ranks = make_ranks();
  Rank& rank = ranks[0];
  std::ranges::fill(rank.p, 1.0f);
  std::ranges::fill(rank.q, 1.0f);
  const auto not_finite = [&](std::uint32_t layer, float p, float q) {
    rank.p[rank.layers[layer].p + 5] = p;
    rank.q[rank.layers[layer].q + 7] = q;
    rank.words = {};
    Machine{}.launch(rank, "low_rank_sent_kernel", task_of(rank), kMatrices);
    return rank.words.not_finite;
  };
  EXPECT_EQ(not_finite(1, 1e19f, 1e18f), 0u);
  EXPECT_EQ(not_finite(1, -1e19f, 1e19f), 1u);
  EXPECT_EQ(not_finite(1, 1, HUGE_VALF), 1u);
  EXPECT_EQ(not_finite(1, std::nanf(""), 1), 0u);  // that is in the mean's frame
}

TEST(LowRankPtx, DependentAndHugeAndTinyColumnsAreMadeOrthonormalAsOnTheCpu) {
  std::vector<Rank> ranks = make_ranks();
  Rank& rank = ranks[0];
  rank.p = normal_values(rank.p.size(), 3);
  const auto column = [&](std::uint64_t c) {
    return rank.p.begin() + std::ptrdiff_t(c * 19 + 120);
  };
  ASSERT_EQ(rank.layers[1].p, 120u);
  std::copy_n(column(0), 19, column(1));                                     // depends
  std::fill_n(column(2), 19, 0.0f);                                          // zero
  for (int i = 0; i < 19; ++i) column(3)[i] *= i % 2 == 0 ? 1e38f : 1e-38f;  // far apart
  for (int i = 0; i < 19; ++i) column(4)[i] *= 1e-40f;                       // subnormal
  column(5)[3] = HUGE_VALF;
  std::vector<float> expected = rank.p;
  for (std::uint32_t l = 0; l < kMatrices; ++l) {
    const LowRankLayer& layer = rank.layers[l];
    orthogonalize(expected.data() + layer.p, layer.rows, layer.rank);
  }
  Machine{}.launch(rank, "low_rank_orthonormal_kernel", task_of(rank), kMatrices);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(rank.p[i])) rank.p[i] = expected[i];
  }
  EXPECT_TRUE(same_bits(rank.p, expected));
}

TEST(LowRankPtx, EveryBarrierThatIsTakenOutIsFound) {
  const int barriers = ptx::expect_barriers_are_needed(
      compiled(),
      {"low_rank_start_kernel", "low_rank_multiply_kernelILNS_5DTypeE0",
       "low_rank_orthonormal_kernel", "low_rank_sent_kernel"},
      [](const std::vector<ptx::Kernel>& mutants) {
        return ptx::finding_of_seeds([&](std::uint64_t seed) {
          return difference({.kernels = mutants, .seed = seed, .most_blocks = 1});
        });
      });
  EXPECT_GT(barriers, 20);
}

}  // namespace
}  // namespace thinwire::testing
