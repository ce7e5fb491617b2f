// The spectral row codec: its quantisers, the allocation of bits, round trips, and how the ranks
// come to share a basis.

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>
#include <numeric>

#include "thinwire/common/error.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/moe/rows/spectral_levels.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::moe {
namespace {

using thinwire::testing::RankContext;
using thinwire::testing::run_ranks;

constexpr std::int64_t kDim = 32;

// Rows around a mean direction whose components fall off quickly in a basis of their own.
at::Tensor rows_near_a_subspace(std::int64_t count, std::uint64_t seed) {
  // Computed once: a QR decomposition may round differently from call to call.
  static const auto structure = [] {
    auto generator = at::detail::createCPUGenerator(1);
    const at::Tensor noise = at::randn({kDim, kDim}, generator, at::kDouble);
    return std::pair(std::get<0>(at::linalg_qr(noise)),
                     0.5 * at::randn({kDim}, generator, at::kDouble));
  }();
  const auto& [basis, mean] = structure;
  const at::Tensor deviation = at::exp(-0.15 * at::arange(kDim, at::kDouble));
  auto generator = at::detail::createCPUGenerator(seed);
  const at::Tensor x = at::randn({count, kDim}, generator, at::kDouble) * deviation;
  return (at::mm(x, basis) + mean).to(at::kFloat);
}

std::shared_ptr<const SpectralBasis> basis_for(const at::Tensor& rows, double bits) {
  RowMoments moments(rows.size(1));
  for (const at::Tensor& part : rows.split(128)) moments.add(part);
  const SpectralOptions options{.bits = bits};
  return basis_of(moments.basis_message(options, true), options, rows.size(1));
}

double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor reference = expected.to(at::kDouble);
  return ((actual.to(at::kDouble) - reference).norm() / reference.norm()).item<double>();
}

TEST(SpectralLevels, HaveTheStatedDistortionOnANormal) {
  for (int bits = 1; bits <= kMostLevelBits; ++bits) {
    const auto levels = levels_of(bits);
    const auto thresholds = thresholds_of(bits);
    double distortion = 0;
    constexpr double kStep = 1e-4;
    for (double x = -9 + kStep / 2; x < 9; x += kStep) {
      const auto code = static_cast<std::size_t>(
          std::upper_bound(thresholds.begin(), thresholds.end(), static_cast<float>(x)) -
          thresholds.begin());
      const double error = x - static_cast<double>(levels[code]);
      distortion += error * error * std::exp(-x * x / 2) / std::sqrt(2 * M_PI) * kStep;
    }
    EXPECT_NEAR(distortion / kLevelDistortion[bits], 1, 1e-4) << bits << " bits";
  }
}

TEST(SpectralBits, AreTheBestWholeNumbers) {
  // Against all assignments of up to 4 bits to four components.
  const std::vector<double> variance = {9.0, 1.0, 0.25, 0.01};
  for (std::int64_t budget = 0; budget <= 12; ++budget) {
    const auto bits = allocate_bits(variance, budget);
    ASSERT_EQ(std::accumulate(bits.begin(), bits.end(), 0), budget);
    const auto error = [&](const std::vector<int>& b) {
      double sum = 0;
      for (std::size_t j = 0; j < 4; ++j) sum += variance[j] * kLevelDistortion[b[j]];
      return sum;
    };
    const double actual = error({bits[0], bits[1], bits[2], bits[3]});
    for (int code = 0; code < 7 * 7 * 7 * 7; ++code) {
      const std::vector<int> b = {code % 7, code / 7 % 7, code / 49 % 7, code / 343};
      if (std::accumulate(b.begin(), b.end(), 0) > budget) continue;
      EXPECT_LE(actual, error(b) + 1e-12) << "budget " << budget;
    }
  }
  EXPECT_EQ(allocate_bits({1, 1, 1}, 4), (std::vector<std::uint8_t>{2, 1, 1}));
  EXPECT_EQ(allocate_bits({1, 0, 0}, 100), (std::vector<std::uint8_t>{kMostLevelBits, 0, 0}));
  EXPECT_TRUE(allocate_bits({}, 3).empty());
}

TEST(SpectralRows, LoseLessThanFourBitRowsAtThreeBits) {
  const auto basis = basis_for(rows_near_a_subspace(1000, 2), 3.0);
  const at::Tensor fresh = rows_near_a_subspace(300, 3);
  const double spectral = relative_error(basis->decode(basis->encode(fresh), at::kFloat), fresh);
  const RowCodec four("quantize(bits=4)");
  const double plain = relative_error(
      four.decode(four.encode(fresh, RandomKey{}), kDim, at::kFloat, {{fresh.size(0), {}}}), fresh);
  EXPECT_LT(basis->row_bytes(), four.row_bytes(kDim, at::kFloat));
  EXPECT_LT(spectral, 0.7 * plain);
  double last = 1;
  for (const double bits : {1.0, 1.5, 2.0, 2.5, 3.0, 4.0}) {
    const auto finer = basis_for(rows_near_a_subspace(1000, 2), bits);
    EXPECT_EQ(finer->row_bytes(), static_cast<std::int64_t>(bits * kDim / 8));
    const double error = relative_error(finer->decode(finer->encode(fresh), at::kFloat), fresh);
    EXPECT_LT(error, last) << bits << " bits";
    last = error;
  }
}

TEST(SpectralRows, AreCodedOneByOneAtAnyLength) {
  const auto basis = basis_for(rows_near_a_subspace(500, 4), 2.5);
  const at::Tensor rows = rows_near_a_subspace(7, 5);
  const at::Tensor bytes = basis->encode(rows);
  ASSERT_EQ(bytes.sizes(), at::IntArrayRef({7, 10}));
  const at::Tensor decoded = basis->decode(bytes, at::kFloat);
  for (std::int64_t i = 0; i < 7; ++i) {
    const at::Tensor one = basis->encode(rows.narrow(0, i, 1));
    EXPECT_TRUE(at::allclose(basis->decode(one, at::kFloat)[0], decoded[i], 1e-4, 1e-5));
    for (const double length : {1e-30, 1e-3, 1e30}) {
      const at::Tensor scaled = rows.narrow(0, i, 1) * length;
      EXPECT_NEAR(relative_error(basis->decode(basis->encode(scaled), at::kFloat), scaled),
                  relative_error(decoded[i], rows[i]), 0.01);
    }
  }
  EXPECT_EQ(basis->encode(rows.narrow(0, 0, 0)).sizes(), at::IntArrayRef({0, 10}));
  for (const auto type : {at::kDouble, at::kBFloat16}) {
    EXPECT_LE(
        relative_error(basis->decode(basis->encode(rows.to(type)), type).to(at::kFloat), rows),
        0.02 + relative_error(decoded, rows));
  }
}

TEST(SpectralRows, ZerosAndNonFiniteRowsStayWhatTheyAre) {
  const auto basis = basis_for(rows_near_a_subspace(500, 6), 2.5);
  at::Tensor rows = rows_near_a_subspace(5, 7);
  rows[1].zero_();
  rows[2][3] = std::numeric_limits<float>::quiet_NaN();
  rows[3][0] = std::numeric_limits<float>::infinity();
  const at::Tensor decoded = basis->decode(basis->encode(rows), at::kFloat);
  EXPECT_TRUE(at::equal(decoded[1], at::zeros({kDim})));
  for (const std::int64_t i : {2, 3}) EXPECT_FALSE(at::isfinite(decoded[i]).any().item<bool>());
  for (const std::int64_t i : {0, 4}) EXPECT_TRUE(at::isfinite(decoded[i]).all().item<bool>());
  RowMoments moments(kDim);
  moments.add(rows);
  EXPECT_EQ(moments.count(), 2);  // neither zeros nor NaN
}

TEST(SpectralRows, AnyBytesDecodeAndWrongShapesAreRefused) {
  const auto basis = basis_for(rows_near_a_subspace(500, 8), 2.5);
  const at::Tensor noise = at::randint(256, {50, 10}, at::kByte);
  EXPECT_EQ(basis->decode(noise, at::kFloat).sizes(), at::IntArrayRef({50, kDim}));
  EXPECT_THROW(basis->decode(noise.narrow(1, 0, 9), at::kFloat), FrameError);
  EXPECT_THROW(basis->encode(at::zeros({2, kDim + 1})), InvalidArgument);
  const SpectralOptions options;
  EXPECT_THROW(basis_of(at::zeros({7}, at::kByte), options, kDim), FrameError);
  EXPECT_EQ(basis_of(at::zeros({basis_message_bytes(kDim)}, at::kByte), options, kDim), nullptr);
  // More bits than fit a row.
  EXPECT_THROW(basis_of(at::full({basis_message_bytes(kDim)}, 3, at::kByte), options, kDim),
               FrameError);
}

TEST(RowMoments, SurviveTheWire) {
  RowMoments moments(kDim);
  moments.add(rows_near_a_subspace(100, 9));
  const RowMoments again = RowMoments::unpacked(moments.packed(), kDim);
  EXPECT_TRUE(at::allclose(again.sums(), moments.sums(), 1e-6, 1e-6));
  EXPECT_EQ(moments.packed().numel(), RowMoments::packed_size(kDim));
  RowMoments sum = RowMoments::unpacked(moments.packed(), kDim);
  sum.decay_and_add(0.5, again);
  EXPECT_EQ(sum.count(), 150);
}

TEST(SpectralSpec, RoundTripsAndNamesMistakes) {
  const std::string text = RowCodec("spectral(start=cast(bf16))").spec();
  EXPECT_EQ(text, concat("spectral(bits=2.5, refresh=20, drift=1.5, start=",
                         RowCodec("cast(bf16)").spec(), ", coding=levels)"));
  EXPECT_EQ(RowCodec(text).spec(), text);
  EXPECT_EQ(RowCodec("spectral").spectral()->bits, 2.5);
  EXPECT_THROW(RowCodec("spectral(bits=9)"), InvalidArgument);
  EXPECT_THROW(RowCodec("spectral(bit=2)"), InvalidArgument);
  EXPECT_THROW(RowCodec("spectral(drift=0.9)"), InvalidArgument);
  EXPECT_THROW(RowCodec("spectral(start=topk(density=0.1))"), InvalidArgument);
}

TEST(RowSpecs, OneTwoOrFour) {
  const LegSpecs two = parse_rows("cast(bf16); quantize(bits=8)");
  EXPECT_EQ(two.dispatch, "cast(bf16)");
  EXPECT_EQ(two.combine, "cast(bf16)");
  EXPECT_EQ(two.combine_backward, "quantize(bits=8)");
  EXPECT_EQ(two.dispatch_backward, "quantize(bits=8)");
  EXPECT_EQ(parse_rows("none;cast(bf16);none;cast(fp16)").dispatch_backward, "cast(fp16)");
  EXPECT_EQ(parse_rows("none").combine, "none");
  EXPECT_EQ(parse_rows("cast(bf16)").dispatch_backward, "cast(bf16)");
  const LegSpecs spectral = parse_rows("spectral(bits=3.5)");
  EXPECT_EQ(spectral.combine, "spectral(bits=3.5)");
  for (const auto& spec : {spectral.combine_backward, spectral.dispatch_backward}) {
    EXPECT_EQ(spec, "quantize(bits=4, rounding=stochastic)");
  }
  EXPECT_EQ(parse_rows("spectral").combine_backward, "quantize(bits=3, rounding=stochastic)");
  EXPECT_EQ(parse_rows("spectral; spectral").combine_backward, "spectral");
  EXPECT_THROW(parse_rows("spectral(bits=0)"), InvalidArgument);
  EXPECT_THROW(parse_rows("none; none; none"), InvalidArgument);
}

TEST(BasisLeg, IsDueNowAndThen) {
  SpectralOptions options;
  options.refresh = 20;
  const BasisLeg leg{Leg::kDispatch, options, 0, RowMoments(2), RowMoments(2), {}};
  std::vector<std::int64_t> due;
  for (std::int64_t step = 0; step <= 60; ++step) {
    if (leg.is_due(step)) due.push_back(step);
  }
  EXPECT_EQ(due, (std::vector<std::int64_t>{20, 40, 60}));
}

MoEOptions spectral_options() {
  MoEOptions options;
  options.router = {.dim = kDim, .experts = 5, .top_k = 2};
  options.hidden = 8;
  options.rows = parse_rows("spectral(bits=3, refresh=4); spectral(bits=3, refresh=4)");
  options.seed = 3;
  return options;
}

void train(MoELayer& layer, int rank, int steps, int first = 0) {
  for (int step = first; step < first + steps; ++step) {
    const auto seed = static_cast<std::uint64_t>(100 * step + rank);
    // Rank 1 has no tokens: its experts still see the others'.
    const at::Tensor x = rows_near_a_subspace(rank == 1 ? 0 : 40 + rank, seed).requires_grad_();
    layer.forward(x).output.square().sum().backward();
    layer.zero_grad();
  }
}

TEST(SpectralLegs, AllRanksShareOneBasisForEachLeg) {
  std::mutex mutex;
  std::map<std::string, at::Tensor> bases;
  std::map<std::string, int> owners;
  run_ranks(3, [&](RankContext& context) {
    MoELayer layer(spectral_options(), context.group);
    train(layer, context.rank, 2);
    for (const auto& [name, tensor] : layer.local_state()) {
      EXPECT_EQ(name.find(".basis"), std::string::npos) << "a basis before the second step";
    }
    const auto before = layer.wire_bytes();
    EXPECT_EQ(before.bases, 0);
    train(layer, context.rank, 4, 2);
    EXPECT_GT(layer.wire_bytes().bases, 0);
    const std::lock_guard lock(mutex);
    for (const auto& [name, tensor] : layer.local_state()) {
      if (name.ends_with(".moments")) ++owners[name];
      if (!name.ends_with(".basis")) continue;
      const auto [known, is_new] = bases.try_emplace(name, tensor);
      EXPECT_TRUE(at::equal(known->second, tensor)) << name;
    }
  });
  EXPECT_EQ(bases.size(), 4u);
  EXPECT_EQ(owners.size(), 4u);
  for (const auto& [name, count] : owners) EXPECT_EQ(count, 1) << name;
}

TEST(SpectralLegs, FewerBytesOnceABasisHasHeldAndNothingMovesInEvaluation) {
  run_ranks(2, [](RankContext& context) {
    MoELayer layer(spectral_options(), context.group);
    const at::Tensor x = rows_near_a_subspace(64, 11 + static_cast<std::uint64_t>(context.rank));
    const auto dispatched = [&] {
      const MoEOutput result = layer.forward(x.clone().requires_grad_());
      result.output.sum().backward();
      return static_cast<double>(result.counters.wire.rows[0]);
    };
    const double early = dispatched();
    // A basis after four steps; four steps later it is known to have held.
    for (int step = 1; step < 8; ++step) EXPECT_EQ(dispatched(), early) << step;
    const double start =
        static_cast<double>(RowCodec("quantize(bits=8)").row_bytes(kDim, at::kFloat));
    EXPECT_DOUBLE_EQ(dispatched() / early,
                     static_cast<double>(spectral_row_bytes(3, kDim)) / start);
    EXPECT_DOUBLE_EQ(layer.summary().settled_fraction(), 1.0 / 9);
    const at::NoGradGuard no_grad;
    const NamedTensors state = layer.local_state();
    for (int i = 0; i < 10; ++i) layer.forward(x);
    EXPECT_TRUE(
        at::equal(layer.local_state().at("rows.combine.basis"), state.at("rows.combine.basis")));
  });
}

TEST(SpectralLegs, RowsThatLeaveTheirSubspaceAreSentInTheStartCodecUntilTheyStay) {
  run_ranks(2, [](RankContext& context) {
    MoEOptions options = spectral_options();
    options.rows = parse_rows("spectral(bits=3, refresh=4); none; none; none");
    MoELayer layer(options, context.group);
    std::vector<std::int64_t> settled;  // whether the leg was, in every step
    for (int step = 0; step < 24; ++step) {
      at::Tensor x = rows_near_a_subspace(64, static_cast<std::uint64_t>(step));
      // After 9 steps the strongest components become the weakest.
      if (step >= 9) x = x.roll(kDim / 2, 1);
      const std::int64_t before = layer.summary().settled_legs;
      layer.forward(x.requires_grad_()).output.square().sum().backward();
      layer.zero_grad();
      settled.push_back(layer.summary().settled_legs - before);
    }
    // Bases are due every four steps; the one of step 12 is the first to see the other rows.
    for (std::size_t step = 0; step < 24; ++step) {
      EXPECT_EQ(settled[step], (step >= 8 && step < 12) || step >= 16) << step;
    }
  });
}

TEST(RowMoments, TellHowFarRowsAreFromABasis) {
  const auto basis = basis_for(rows_near_a_subspace(1000, 12), 3.0);
  const auto moments_of = [](const at::Tensor& rows) {
    RowMoments moments(kDim);
    for (const at::Tensor& part : rows.split(128)) moments.add(part);
    return moments;
  };
  const at::Tensor fresh = rows_near_a_subspace(1000, 13);
  const at::Tensor unit = fresh / fresh.norm(2, 1, true);
  const double lost = relative_error(basis->decode(basis->encode(unit), at::kFloat), unit);
  EXPECT_NEAR(basis->expected_error() / lost, 1, 0.1);
  EXPECT_NEAR(moments_of(fresh).drift_from(*basis), 1, 0.15);
  // Rows of another subspace, or around another mean.
  const at::Tensor away = fresh.roll(kDim / 2, 1);
  const at::Tensor away_unit = away / away.norm(2, 1, true);
  const double away_lost =
      relative_error(basis->decode(basis->encode(away_unit), at::kFloat), away_unit);
  EXPECT_GT(moments_of(away).drift_from(*basis), 0.5 * away_lost / lost);
  EXPECT_GT(moments_of(away).drift_from(*basis), 3);
  EXPECT_GT(moments_of(-fresh).drift_from(*basis), 1.5);
  EXPECT_THROW(basis->expected_error(at::zeros({kDim + 1}, at::kDouble),
                                     at::zeros({kDim, kDim}, at::kDouble)),
               InvalidArgument);
}

TEST(SpectralLegs, TrainingGoesOnFromACheckpointAsIfItHadNotStopped) {
  // Also on another number of ranks the bases are there.
  run_ranks(2, [](RankContext& context) {
    MoELayer layer(spectral_options(), context.group);
    train(layer, context.rank, 9);
    const NamedTensors state = layer.full_state();
    ASSERT_TRUE(is_settled(state.at("rows.dispatch.basis")));
    MoEOptions other = spectral_options();
    other.balance_factor = 0.5;  // not part of the state
    MoELayer resumed(other, context.group);
    resumed.load_state(state);
    for (int step = 9; step < 18; ++step) {  // through two new bases
      const auto seed = static_cast<std::uint64_t>(step);
      const at::Tensor x = rows_near_a_subspace(30, seed);
      EXPECT_TRUE(at::equal(layer.forward(x).output, resumed.forward(x).output)) << step;
      const NamedTensors one_state = layer.local_state(), other_state = resumed.local_state();
      for (const auto& [name, tensor] : one_state) {
        EXPECT_TRUE(at::equal(other_state.at(name), tensor)) << name << " after step " << step;
      }
      train(layer, context.rank, 1, step);
      train(resumed, context.rank, 1, step);
    }
    const NamedTensors alone = MoELayer(spectral_options(), {}).local_state();
    EXPECT_EQ(alone.count("rows.dispatch.basis"), 0u);
    MoELayer one(spectral_options(), {});
    one.load_state(state);
    EXPECT_TRUE(
        at::equal(one.local_state().at("rows.dispatch.basis"), state.at("rows.dispatch.basis")));
    // Other bits need another basis: the rows wait for it, and the old one is forgotten.
    for (const char* bits : {"2", "4"}) {
      MoEOptions changed = spectral_options();
      changed.rows = parse_rows(concat("spectral(bits=", bits, ", refresh=4)"));
      MoELayer with_other_bits(changed, context.group);
      train(with_other_bits, context.rank, 9);
      with_other_bits.load_state(state);
      EXPECT_EQ(with_other_bits.local_state().count("rows.dispatch.basis"), 0u);
      train(with_other_bits, context.rank, 9, 9);
    }
  });
}

}  // namespace
}  // namespace thinwire::moe
