#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "thinwire/compressors/entropy/step_coder.h"
#include "thinwire/tests/compressors/codecs/payloads.h"

namespace thinwire::entropy {
namespace {

using Parts = std::vector<std::vector<float>>;

std::vector<std::span<const float>> views(const Parts& parts) {
  return {parts.begin(), parts.end()};
}
std::vector<std::size_t> sizes(const Parts& parts) {
  std::vector<std::size_t> result;
  for (const auto& part : parts) result.push_back(part.size());
  return result;
}

std::vector<float> part_of(std::size_t count, float scale, std::uint32_t seed) {
  std::vector<float> values = testing::normal_values(count, seed, scale);
  for (std::size_t i = 0; i < count; i += 101) values[i] *= 9;
  return values;
}

// Parts of different sizes and scales: some take codes, some pairs, one is zero, one poisoned.
Parts mixed_parts() {
  Parts parts = {part_of(5000, 2, 1),           part_of(4001, 0.1f, 2),  part_of(7, 1, 3),
                 std::vector<float>(300, 0.0f), part_of(5001, 0.12f, 4), {}};
  parts.push_back(part_of(50, 1, 5));
  parts.back()[20] = std::nanf("");
  parts.push_back(part_of(9000, 30, 6));
  return parts;
}

Parts decoded(std::span<const std::byte> payload, const Parts& like) {
  StepDecoder decoder;
  StepCodes codes;
  decoder.decode(payload, sizes(like), codes);
  Parts parts = like;
  for (std::size_t p = 0; p < parts.size(); ++p) codes.apply(p, Apply::kAssign, parts[p]);
  return parts;
}

TEST(StepCoder, ReceiverHasWhatTheSenderKnowsItSent) {
  const Parts parts = mixed_parts();
  StepEncoder encoder;
  StepCodes codes;
  std::vector<std::byte> out(100000);
  const Encoded encoded = encoder.encode(views(parts), {.step = 1, .rounding = 0.4f}, out, codes);
  EXPECT_EQ(encoded.step, 1);
  EXPECT_NEAR(encoded.wanted_bits, 8 * static_cast<double>(encoded.bytes), 300);
  const Parts received = decoded(std::span(out).first(encoded.bytes), parts);
  EXPECT_EQ(std::memcmp(decoded(out, parts)[0].data(), received[0].data(), 5000 * 4), 0);
  for (std::size_t p = 0; p < parts.size(); ++p) {
    std::vector<float> rest = parts[p];
    codes.apply(p, Apply::kSubtract, rest);
    for (std::size_t i = 0; i < parts[p].size(); ++i) {
      if (p == 6) {
        ASSERT_TRUE(std::isnan(received[p][i]));
        continue;
      }
      ASSERT_EQ(rest[i], parts[p][i] - received[p][i]);
      // Half a bin and the width of the dead zone; centroids lie within their bins.
      ASSERT_LE(std::abs(rest[i]), 1.0f) << p << " " << i;
    }
  }
  for (const float value : received[3]) ASSERT_EQ(value, 0);
}

TEST(StepCoder, CentroidsLowerTheError) {
  // Bins begin well below their multiple of the step, but most values lie far above where they
  // begin.
  std::mt19937 random(9);
  std::exponential_distribution<float> size(1.0f);
  Parts parts(1);
  for (int i = 0; i < 20000; ++i) parts[0].push_back((i % 2 == 0 ? 1.0f : -1.0f) * size(random));
  StepEncoder encoder;
  StepCodes codes;
  std::vector<std::byte> out(40000);
  encoder.encode(views(parts), {.step = 1, .rounding = 0.15f}, out, codes);
  double to_centroid = 0, to_multiple = 0;
  std::vector<float> rest = parts[0];
  codes.apply(0, Apply::kSubtract, rest);
  for (std::size_t i = 0; i < rest.size(); ++i) {
    const float x = parts[0][i];
    const float multiple = std::copysign(std::floor(std::abs(x) + 0.15f), x);
    to_centroid += std::pow(rest[i], 2);
    to_multiple += std::pow(x - multiple, 2);
  }
  EXPECT_LT(to_centroid, 0.9 * to_multiple);
}

TEST(StepCoder, WhatDoesNotFitIsCodedCoarser) {
  const Parts parts = {part_of(50000, 2, 1), part_of(20000, 0.1f, 2)};
  StepEncoder encoder;
  StepCodes codes;
  double last_error = 0;
  for (const std::size_t slot : {100000, 20000, 10000, 3000, 400, 40}) {
    std::vector<std::byte> out(slot);
    const Encoded encoded = encoder.encode(views(parts), {.step = 1, .rounding = 0.4f}, out, codes);
    EXPECT_LE(encoded.bytes, slot);
    if (slot == 100000) {
      EXPECT_EQ(encoded.step, 1);
    }
    if (slot < 20000) {
      EXPECT_GT(encoded.step, 1);
    }
    // It uses what there is.
    if (slot < 20000 && slot > 1000) {
      EXPECT_GT(encoded.bytes, slot / 2);
    }
    const Parts received = decoded(out, parts);
    double error = 0;
    for (std::size_t i = 0; i < parts[0].size(); ++i) {
      error += std::pow(parts[0][i] - received[0][i], 2);
    }
    EXPECT_GE(error, last_error);
    last_error = error;
  }
  std::vector<std::byte> too_small(10);
  EXPECT_THROW(encoder.encode(views(parts), {.step = 1, .rounding = 0.4f}, too_small, codes),
               InvalidArgument);
}

// Whatever step is asked for, the last bytes of a slot lower the error. The step is found by a
// sample.
TEST(StepCoder, SlotsAreFilledWhereThatIsChosen) {
  const Parts parts = {part_of(50000, 2, 1), part_of(20000, 0.1f, 2)};
  StepEncoder encoder;
  StepCodes codes;
  std::vector<std::byte> out(100000);
  const Encoded asked = encoder.encode(views(parts), {.step = 1, .rounding = 0.4f}, out, codes);
  for (const double room : {0.6, 0.9, 1.02, 1.3, 2.0}) {
    const auto slot =
        std::span(out).first(static_cast<std::size_t>(room * static_cast<double>(asked.bytes)));
    const Encoded filled =
        encoder.encode(views(parts), {.step = 1, .rounding = 0.4f, .fill = true}, slot, codes);
    EXPECT_LE(filled.bytes, slot.size());
    EXPECT_GT(filled.bytes, 0.97 * static_cast<double>(slot.size())) << room;
    EXPECT_NEAR(filled.wanted_bits / asked.wanted_bits, 1, 0.01) << "what the next step follows";
    EXPECT_EQ(filled.step<1, room> 1);
  }
  // What nothing makes larger is left as it is.
  const Parts zeros = {std::vector<float>(1000, 0.0f)};
  EXPECT_LT(encoder.encode(views(zeros), {.step = 1, .fill = true}, out, codes).bytes, 30u);
  Parts tiny = {part_of(1000, 3e-30f, 3)};
  EXPECT_GT(encoder.encode(views(tiny), {.step = 2e-30f, .fill = true}, out, codes).step, 0);
}

// Who knows what the last payload of a gradient took begins there, and learns what the step that
// was asked for would have taken nevertheless.
TEST(StepCoder, AnotherStepIsTriedFirstWhereThatIsChosen) {
  Parts parts;
  for (int p = 0; p < 30; ++p) parts.push_back(part_of(1300, 1, p));  // too small to be sampled
  StepEncoder encoder;
  StepCodes codes;
  std::vector<std::byte> out(100000);
  const Encoded asked = encoder.encode(views(parts), {.step = 1, .rounding = 0.4f}, out, codes);
  const auto slot = std::span(out).first(asked.bytes * 9 / 10);
  StepChoice choice = {.step = 1, .rounding = 0.4f, .fill = true};
  const Encoded found = encoder.encode(views(parts), choice, slot, codes);
  choice.begin = found.step * 1.001f;
  const Encoded begun = encoder.encode(views(parts), choice, slot, codes);
  EXPECT_EQ(begun.step, choice.begin);
  EXPECT_GT(begun.bytes, 0.97 * static_cast<double>(slot.size()));
  EXPECT_NEAR(begun.wanted_bits / asked.wanted_bits, 1, 0.02);
  choice.fill = false;
  EXPECT_EQ(encoder.encode(views(parts), choice, out, codes).step, 1);
}

TEST(StepCoder, PartsHaveCentroidsOfTheirOwn) {
  Parts parts = {std::vector<float>(2000, 0.8f), std::vector<float>(2000, 1.2f)};
  for (Parts::value_type& part : parts) {
    for (std::size_t i = 0; i < part.size(); i += 3) part[i] = 0;
    for (std::size_t i = 1; i < part.size(); i += 6) part[i] *= -1;
  }
  for (std::size_t i = 2; i < 1000; i += 3) parts[0][i] = 0;  // so that they share no table
  StepEncoder encoder;
  StepCodes codes;
  std::vector<std::byte> out(10000);
  encoder.encode(views(parts), {.step = 1}, out, codes);
  const Parts received = decoded(out, parts);
  for (std::size_t p = 0; p < 2; ++p) {
    for (std::size_t i = 0; i < 2000; ++i) ASSERT_NEAR(received[p][i], parts[p][i], 1 / 256.0);
  }
}

// Classes of a small slice of a layer: a table of weights for each would take more than the codes.
TEST(StepCoder, ManySmallPartsOfLaplaceValuesTakeLittleMoreThanTheirEntropy) {
  Parts parts;
  double entropy = 0;
  for (unsigned p = 0; p < 24; ++p) {
    std::mt19937 random(p);
    std::exponential_distribution<float> size(0.5f * std::exp2(0.25f * static_cast<float>(p)));
    std::vector<float> part(400);
    std::map<int, int> counts;
    for (float& value : part) {
      value = (random() % 2 != 0 ? 1.0f : -1.0f) * size(random);
      ++counts[static_cast<int>(std::copysign(std::floor(std::fabs(value) + 0.4f), value))];
    }
    for (const auto& [code, count] : counts) entropy -= count * std::log2(count / 400.0);
    parts.push_back(part);
  }
  StepEncoder encoder;
  StepCodes codes;
  std::vector<std::byte> out(20000);
  const Encoded encoded = encoder.encode(views(parts), {.step = 1, .rounding = 0.4f}, out, codes);
  EXPECT_LT(8.0 * static_cast<double>(encoded.bytes), entropy + 8 * 24 * 7);
  const Parts received = decoded(out, parts);
  for (std::size_t p = 0; p < parts.size(); ++p) {
    for (std::size_t i = 0; i < 400; ++i) ASSERT_NEAR(received[p][i], parts[p][i], 0.8f);
  }
}

TEST(StepCoder, RoundingFollowsTheZerosOfItsPart) {
  Parts parts = {std::vector<float>(4000, 0.1f), std::vector<float>(4000, 0.6f)};
  parts[0][3999] = 0.6f;
  for (std::size_t i = 0; i < 4000; i += 2) parts[1][i] = 1.7f;
  StepEncoder encoder;
  StepCodes codes;
  std::vector<std::byte> out(10000);
  encoder.encode(views(parts), {.step = 1, .rounding = 0.42f, .rounding_by_part = true}, out,
                 codes);
  const Parts received = decoded(out, parts);
  EXPECT_EQ(received[0][3999], 0) << "dear among zeros";
  EXPECT_GT(received[1][3999], 0.5f) << "nothing is zero here";
}

// What tables take is then most of the payload, and hardly less with a coarser step.
TEST(StepCoder, AFewElementsInLittleRoomAreNotGivenUp) {
  StepEncoder encoder;
  StepCodes codes;
  for (const std::size_t count : {1, 2, 6, 20, 60}) {
    const Parts parts = {testing::normal_values(count, 7, 1)};
    for (const std::size_t room : {24, 48, 80}) {
      std::vector<std::byte> out(StepEncoder::min_bytes(1) + room + count / 2);
      encoder.encode(views(parts), {.step = 0x1p-20f}, out, codes);
      const std::vector<float> received = decoded(out, parts)[0];
      double error = 0, norm = 0;
      for (std::size_t i = 0; i < count; ++i) {
        error += std::pow(received[i] - parts[0][i], 2);
        norm += std::pow(parts[0][i], 2);
      }
      EXPECT_LT(error, 0.1 * norm) << count << " elements, room " << room;
    }
  }
}

TEST(StepCoder, AnyStepIsTaken) {
  const Parts parts = {part_of(3000, 1, 1)};
  StepEncoder encoder;
  StepCodes codes;
  for (const float step : {0.0f, 1e-40f, 1e-20f, 1e-3f, 1e20f, 1e38f, INFINITY}) {
    std::vector<std::byte> out(30000);
    const Encoded encoded =
        encoder.encode(views(parts), {.step = step, .rounding = 0.4f}, out, codes);
    const Parts received = decoded(std::span(out).first(encoded.bytes), parts);
    if (step == 1e-3f) {
      for (std::size_t i = 0; i < 3000; ++i) ASSERT_NEAR(received[0][i], parts[0][i], 1e-3f);
    }
    if (step == 0 || step > 1e10f) {
      EXPECT_EQ(received[0], std::vector<float>(3000, 0.0f));
    }
  }
}

class StepCoderTargets : public ::testing::TestWithParam<std::string> {};

TEST_P(StepCoderTargets, WriteTheSameBytes) {
  const Parts parts = mixed_parts();
  std::vector<std::byte> out[2];
  for (int side = 0; side < 2; ++side) {
    const testing::ScopedTarget target(side == 0 ? kernels::simd_targets().back() : GetParam());
    StepEncoder encoder;
    StepCodes codes;
    out[side].resize(30000);
    encoder.encode(views(parts), {.step = 0.7f, .rounding = 0.4f}, out[side], codes);
  }
  EXPECT_EQ(out[1], out[0]);
}

TEST_P(StepCoderTargets, DamagedPayloadsAreRefusedOrDecodeToSomething) {
  const testing::ScopedTarget target(GetParam());
  const Parts parts = mixed_parts();
  StepEncoder encoder;
  StepCodes codes;
  std::vector<std::byte> out(30000);
  out.resize(encoder.encode(views(parts), {.step = 0.7f, .rounding = 0.4f}, out, codes).bytes);
  std::mt19937 random(23);
  StepDecoder decoder;
  Parts target_parts = parts;
  int refused = 0;
  const auto attempt = [&](const std::vector<std::byte>& payload) {
    try {
      decoder.decode(payload, sizes(parts), codes);
      for (std::size_t p = 0; p < parts.size(); ++p) {
        codes.apply(p, Apply::kAssign, target_parts[p]);
      }
    } catch (const FrameError&) {
      ++refused;
    }
  };
  for (int i = 0; i < 600; ++i) {
    std::vector<std::byte> damaged = out;
    // Mostly in the tables and lengths at the beginning.
    const std::size_t at = random() % (i % 3 == 0 ? damaged.size() : 200);
    damaged[at] ^= static_cast<std::byte>(1 + random() % 255);
    attempt(damaged);
  }
  EXPECT_GT(refused, 400);  // most bytes of models and centroids mean something
  refused = 0;
  for (std::size_t size = 0; size < out.size(); size += 97) {
    attempt(std::vector<std::byte>(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(size)));
  }
  EXPECT_EQ(refused, static_cast<int>((out.size() + 96) / 97));
  std::vector<std::byte> longer = out;
  longer.push_back(std::byte{1});
  EXPECT_THROW(decoder.decode(longer, sizes(parts), codes), FrameError);
}

INSTANTIATE_TEST_SUITE_P(Simd, StepCoderTargets, ::testing::ValuesIn(kernels::simd_targets()));

}  // namespace
}  // namespace thinwire::entropy
