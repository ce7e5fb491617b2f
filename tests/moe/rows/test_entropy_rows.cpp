#include "thinwire/moe/rows/entropy_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>

#include <cmath>
#include <limits>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/moe/rows/leg_specs.h"
#include "thinwire/moe/rows/row_codec.h"
#include "thinwire/moe/rows/row_moments.h"

namespace thinwire::moe {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr std::int64_t kDim = 96;

// Rows as networks have them: some components are much larger than the others.
at::Tensor rows_of(std::int64_t count, std::uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  const at::Tensor scale = at::randn({kDim}, generator, at::kFloat).mul(1.2).exp();
  return at::randn({count, kDim}, generator, at::kFloat) * scale;
}

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor exact = b.to(at::kDouble);
  return ((a - exact).norm() / exact.norm().clamp_min(1e-300)).item<double>();
}

at::Tensor through(const RowCodec& codec, const at::Tensor& rows,
                   const std::vector<RowSegment>& segments) {
  return codec.decode(codec.encode(rows, segments), rows.size(1), rows.scalar_type(), segments);
}

at::Tensor through(const RowCodec& codec, const at::Tensor& rows, const RandomKey& key = {}) {
  return through(codec, rows, {RowSegment{rows.size(0), key}});
}

TEST(EntropyRows, HaveTheErrorOfCodesOfTwiceAsManyBits) {
  const at::Tensor rows = rows_of(512, 1);
  const double four = relative_error(through(RowCodec("quantize(bits=4)"), rows), rows);
  const double two = relative_error(through(RowCodec("ecsq(bits=2)"), rows), rows);
  EXPECT_LT(two, four);
  EXPECT_LT(relative_error(through(RowCodec("ecsq(bits=4)"), rows), rows), 0.3 * two);
}

TEST(EntropyRows, AMessageTakesItsBitsAndAFewRowsWhateverIsInIt) {
  for (const double bits : {0.1, 0.5, 1.75, 3.0, 8.0}) {
    const RowCodec codec(concat("ecsq(bits=", bits, ")"));
    EXPECT_EQ(codec.row_bytes(kDim, at::kFloat), std::max<std::int64_t>(1, kDim * bits / 8));
    EXPECT_EQ(codec.message_rows(0, kDim), 0);
    for (const std::int64_t count : {1, 2, 7, 300}) {
      const std::vector<RowSegment> segments = {{count, {}}};
      const std::int64_t wide = codec.message_rows(count, kDim);
      EXPECT_LE((wide - count) * codec.row_bytes(kDim, at::kFloat),
                60 + 8 * bits + kDim * bits / 8);
      for (const at::Tensor& rows :
           {rows_of(count, 3), at::zeros({count, kDim}), at::full({count, kDim}, 1e-38f),
            at::full({count, kDim}, 3e38f), rows_of(count, 4).pow(5)}) {
        const at::Tensor bytes = codec.encode(rows, segments);
        EXPECT_EQ(bytes.size(0), wide);
        const at::Tensor decoded = codec.decode(bytes, kDim, at::kFloat, segments);
        EXPECT_TRUE(decoded.isfinite().all().item<bool>());
        const double largest = rows.abs().max().item<double>();
        const bool usual = largest > 1e-6 && largest < 1e6;
        EXPECT_LE(relative_error(decoded, rows), usual && bits >= 1.75 ? 0.6 : 1.01)
            << bits << " bits, " << count;
      }
    }
  }
}

// Columns have means and deviations of their own, of which large messages tell.
TEST(EntropyRows, MeansOfColumnsCostNothing) {
  const at::Tensor rows = rows_of(256, 11);
  const RowCodec codec("ecsq(bits=2.5)");
  const double centred = (through(codec, rows) - rows).norm().item<double>();
  auto generator = at::detail::createCPUGenerator(12);
  const at::Tensor offset = at::randn({kDim}, generator, at::kFloat) * 10 * rows.std(0);
  const double moved = (through(codec, rows + offset) - rows - offset).norm().item<double>();
  EXPECT_LT(moved, 1.15 * centred);
  const at::Tensor constant = at::full({200, kDim}, 3.25f);
  EXPECT_LT(relative_error(through(codec, constant), constant), 0.01);
}

// Each sender's rows are a message of their own; an empty one takes nothing.
TEST(EntropyRows, SegmentsAreMessages) {
  const at::Tensor rows = rows_of(20, 5);
  for (const char* spec : {"ecsq(bits=3)", "ecsq(bits=3, rounding=stochastic)"}) {
    const RowCodec codec(spec);
    const RandomKey first{.rank = 1}, second{.rank = 2};
    const at::Tensor together =
        through(codec, rows, {{0, {}}, {12, first}, {0, {}}, {8, second}, {0, {}}});
    EXPECT_TRUE(at::equal(together.narrow(0, 0, 12), through(codec, rows.narrow(0, 0, 12), first)));
    EXPECT_TRUE(
        at::equal(together.narrow(0, 12, 8), through(codec, rows.narrow(0, 12, 8), second)));
  }
}

TEST(EntropyRows, StochasticRoundingIsRightOnAverage) {
  const at::Tensor rows = rows_of(64, 6);
  const RowCodec codec("ecsq(bits=2, rounding=stochastic)");
  at::Tensor sum = at::zeros_like(rows);
  constexpr int kDraws = 400;
  double each = 0;
  for (int i = 0; i < kDraws; ++i) {
    const at::Tensor decoded =
        through(codec, rows, RandomKey{.step = static_cast<std::uint64_t>(i)});
    each += relative_error(decoded, rows) / kDraws;
    sum += decoded;
  }
  // The error of the mean of independent draws falls with the square root of their number.
  const double left = relative_error(sum / kDraws, rows);
  EXPECT_LT(left, 1.2 * each / std::sqrt(kDraws));
  EXPECT_GT(each, 0.05);
  // Rounding to nearest is not: what is small is always lost.
  EXPECT_GT(relative_error(through(RowCodec("ecsq(bits=2)"), rows), rows), 3 * left);
  EXPECT_TRUE(at::equal(through(codec, rows), through(codec, rows))) << "by the key alone";
}

// Rows whose coordinates differ by far more than their elements.
at::Tensor rows_near_a_subspace(std::int64_t count, std::uint64_t seed) {
  auto shared = at::detail::createCPUGenerator(77);
  const at::Tensor mix = at::randn({kDim, kDim}, shared, at::kFloat) *
                         at::pow(0.93, at::arange(kDim, at::kFloat)).unsqueeze(1);
  auto generator = at::detail::createCPUGenerator(seed);
  return at::mm(at::randn({count, kDim}, generator, at::kFloat), mix) + mix[0];
}

RowCodec in_a_basis(const std::string& spec) {
  const RowCodec codec(spec);
  RowMoments moments(kDim);
  for (std::uint64_t i = 0; i < 20; ++i) moments.add(rows_near_a_subspace(100, 100 + i));
  return codec.with_basis(
      basis_of(moments.basis_message(*codec.spectral(), true), *codec.spectral(), kDim));
}

TEST(EntropyRows, InABasisTheyLoseLessThanItsLevelsAndThanWithoutOne) {
  const at::Tensor rows = rows_near_a_subspace(512, 1);
  for (const char* bits : {"2", "3", "4"}) {
    const double levels =
        relative_error(through(in_a_basis(concat("spectral(bits=", bits, ")")), rows), rows);
    const RowCodec codec = in_a_basis(concat("spectral(bits=", bits, ", coding=entropy)"));
    const double error = relative_error(through(codec, rows), rows);
    EXPECT_LT(error, 0.97 * levels) << bits;
    EXPECT_LT(error, relative_error(through(RowCodec(concat("ecsq(bits=", bits, ")")), rows), rows))
        << bits;
    EXPECT_LE(codec.encode(rows, RandomKey{}).numel(), (512 + 9) * kDim * std::stoi(bits) / 8);
  }
}

TEST(EntropyRows, InABasisMessagesAreIndependentAndMayBeSmall) {
  const RowCodec codec = in_a_basis("spectral(bits=3, coding=entropy)");
  const at::Tensor rows = rows_near_a_subspace(20, 2);
  const at::Tensor together = through(codec, rows, {{1, {}}, {0, {}}, {19, {}}});
  EXPECT_TRUE(at::equal(together.narrow(0, 0, 1), through(codec, rows.narrow(0, 0, 1))));
  EXPECT_TRUE(at::equal(together.narrow(0, 1, 19), through(codec, rows.narrow(0, 1, 19))));
  EXPECT_LT(relative_error(together, rows), 0.5);
  EXPECT_TRUE(at::equal(through(codec, at::zeros({3, kDim})), at::zeros({3, kDim})));
  at::Tensor bad = rows.clone();
  bad[1][2] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(through(codec, bad).isnan().all().item<bool>());
}

TEST(EntropyRows, OneValueThatIsNotFiniteMakesItsMessageNaN) {
  at::Tensor rows = rows_of(12, 7);
  rows[2][5] = std::numeric_limits<float>::infinity();
  const at::Tensor decoded = through(RowCodec("ecsq(bits=2)"), rows, {{4, {}}, {8, {}}});
  EXPECT_TRUE(decoded.narrow(0, 0, 4).isnan().all().item<bool>());
  EXPECT_TRUE(decoded.narrow(0, 4, 8).isfinite().all().item<bool>());
}

TEST(EntropyRows, TakeHalfTypes) {
  const at::Tensor rows = rows_of(50, 8).to(at::kBFloat16);
  const at::Tensor decoded = through(RowCodec("ecsq(bits=4)"), rows);
  EXPECT_EQ(decoded.scalar_type(), at::kBFloat16);
  EXPECT_LT(relative_error(decoded.to(at::kFloat), rows.to(at::kFloat)), 0.1);
}

TEST(EntropyRows, DamagedMessagesAreRefused) {
  const RowCodec codec("ecsq(bits=2)");
  const std::vector<RowSegment> segments = {{40, {}}};
  const at::Tensor bytes = codec.encode(rows_of(40, 9), segments);
  EXPECT_THROW(codec.decode(bytes.narrow(0, 1, bytes.size(0) - 1), kDim, at::kFloat, segments),
               FrameError);
  int refused = 0;
  for (std::int64_t i = 0; i < 200; ++i) {
    at::Tensor damaged = bytes.clone();
    auto flat = damaged.view({-1});
    flat[i * 7 % flat.numel()] = flat[i * 7 % flat.numel()].bitwise_xor(0x11);
    try {
      codec.decode(damaged, kDim, at::kFloat, segments);
    } catch (const FrameError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 150);
}

TEST(EntropyRows, ASingleSpecIsForForwardLegs) {
  const LegSpecs legs = parse_rows("ecsq(bits=1.75)");
  EXPECT_EQ(legs.dispatch, "ecsq(bits=1.75)");
  EXPECT_EQ(legs.combine_backward, "ecsq(bits=2.5, rounding=stochastic)");
  EXPECT_EQ(parse_rows("ecsq(bits=5)").dispatch_backward, "ecsq(bits=5, rounding=stochastic)");
  EXPECT_EQ(parse_rows("ecsq(bits=2); ecsq(bits=2)").dispatch_backward, "ecsq(bits=2)");
  EXPECT_EQ(parse_rows("spectral(bits=1, coding=entropy)").dispatch_backward,
            "ecsq(bits=2.5, rounding=stochastic)");
}

TEST(EntropyRows, RefuseWhatCannotBeMeant) {
  EXPECT_THAT([] { RowCodec("ecsq(bits=9)"); }, ThrowsMessage<InvalidArgument>(HasSubstr("bits")));
  EXPECT_THAT([] { RowCodec("ecsq(step=1)"); },
              ThrowsMessage<InvalidArgument>(HasSubstr("rounding")));
  EXPECT_EQ(RowCodec(RowCodec("ecsq").spec()).spec(), "ecsq(bits=2, rounding=nearest)");
  const std::string spectral = RowCodec("spectral(start=ecsq(bits=4), coding=entropy)").spec();
  EXPECT_EQ(RowCodec(spectral).spec(), spectral);
}

}  // namespace
}  // namespace thinwire::moe
