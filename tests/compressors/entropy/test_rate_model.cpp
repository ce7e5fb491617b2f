#include <gtest/gtest.h>

#include <cmath>

#include "thinwire/compressors/entropy/rate_model.h"
#include "thinwire/compressors/entropy/step_coder.h"
#include "thinwire/tests/compressors/codecs/payloads.h"

namespace thinwire::entropy {
namespace {

// Values whose size varies over three orders, as those of gradients do.
std::vector<float> spread_values(std::size_t count) {
  std::vector<float> values = testing::normal_values(count, 19, 1e-3f);
  for (std::size_t i = 0; i < count; ++i) values[i] *= std::exp(std::sin(0.01f * i) * 2);
  return values;
}

struct Outcome {
  double bits, error;
};

Outcome coded(std::span<const float> values, float step, float rounding) {
  StepEncoder encoder;
  StepCodes codes;
  std::vector<std::byte> out(values.size() * 8 + 1000);
  const std::span<const float> parts[] = {values};
  const Encoded encoded = encoder.encode(parts, {.step = step, .rounding = rounding}, out, codes);
  std::vector<float> rest(values.begin(), values.end());
  codes.apply(0, Apply::kSubtract, rest);
  double error = 0;
  for (const float value : rest) error += double{value} * value;
  return {8.0 * static_cast<double>(encoded.bytes), error};
}

TEST(RateModel, StepsTakeTheBitsThatWereAskedFor) {
  const std::vector<float> values = spread_values(200000);
  const std::array classes = {MagnitudeCounts(values)};
  for (const double bits : {0.1, 0.5, 1.0, 2.5, 4.0, 8.0}) {
    const double all = bits * static_cast<double>(values.size());
    const float step = step_for_bits(classes, all, 0.4);
    // The table and the states of the coder come in addition.
    EXPECT_NEAR(coded(values, step, 0.4f).bits / all, 1, 0.04 + 2500 / all) << bits;
  }
}

TEST(RateModel, StepsLoseTheErrorThatWasAskedFor) {
  const std::vector<float> values = spread_values(200000);
  const std::array classes = {MagnitudeCounts(values)};
  double energy = 0;
  for (const float value : values) energy += double{value} * value;
  for (const double relative : {0.01, 0.1, 0.5}) {
    const double error = relative * relative * energy;
    const float step = step_for_error(classes, error, 0.42);
    EXPECT_NEAR(coded(values, step, 0.42f).error / error, 1, 0.1) << relative;
  }
}

TEST(RateModel, ZerosNeedNoStep) {
  const std::array classes = {MagnitudeCounts(std::vector<float>(100, 0.0f))};
  EXPECT_EQ(step_for_bits(classes, 100, 0.5), 0);
  EXPECT_EQ(step_for_error(classes, 1, 0.5), 0);
}

}  // namespace
}  // namespace thinwire::entropy
