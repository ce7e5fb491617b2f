#include <gtest/gtest.h>

#include <cmath>

#include "payloads.h"
#include "thinwire/compressors/codecs/ecsq.h"

namespace thinwire {
namespace {

// Layers of different sizes in one tensor, as a model's gradient has them.
std::vector<float> gradient(std::size_t count) {
  std::vector<float> values = testing::normal_values(count, 29, 1e-3f);
  for (std::size_t i = 0; i < count; ++i)
    values[i] *= std::exp2(-4.0f * std::floor(8.0f * i / count) / 8);
  return values;
}

double squared_error(std::span<const float> a, std::span<const float> b) {
  double error = 0;
  for (std::size_t i = 0; i < a.size(); ++i) error += std::pow(double{a[i]} - b[i], 2);
  return error;
}

TEST(Ecsq, PayloadsHaveTheBitsOfTheSpec) {
  for (const double bits : {0.25, 1.0, 2.5}) {
    const CodecPtr codec = make_codec(concat("ecsq(bits=", bits, ")"));
    const std::vector<float> values = gradient(100000);
    const auto bytes = testing::compressed(*codec, view_of(std::span(values))).size();
    EXPECT_EQ(bytes, codec->max_compressed_bytes(100000, DType::kFloat32));
    EXPECT_NEAR(8.0 * static_cast<double>(bytes) / 100000, bits, 0.01);
  }
}

TEST(Ecsq, NeedsFewerBitsThanQuantizeForItsError) {
  const std::vector<float> values = gradient(1 << 18);
  const CodecPtr quantize = make_codec("quantize(bits=4)");
  const double error = squared_error(values, testing::round_trip(*quantize, values));
  const CodecPtr as = make_codec("ecsq(as=quantize(bits=4))");
  EXPECT_NEAR(squared_error(values, testing::round_trip(*as, values)) / error, 1, 0.1);
  const auto bytes = testing::compressed(*as, view_of(std::span(values))).size();
  EXPECT_LT(8.0 * static_cast<double>(bytes) / (1 << 18), 3.0);
}

TEST(Ecsq, KeepsTheErrorOrTheStepOfTheSpec) {
  const std::vector<float> values = gradient(100000);
  const std::vector<float> zeros(values.size());
  const auto relative = [&](const char* spec) {
    return std::sqrt(squared_error(values, testing::round_trip(*make_codec(spec), values)) /
                     squared_error(values, zeros));
  };
  EXPECT_NEAR(relative("ecsq(error=0.1)"), 0.1, 0.01);
  EXPECT_NEAR(relative("ecsq(error=0.5)"), 0.5, 0.05);
  const auto decoded = testing::round_trip(*make_codec("ecsq(step=0.0002)"), values);
  for (std::size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(decoded[i], values[i], 0.0002f);
}

TEST(Ecsq, SpecsThatMakeNoSenseAreRefused) {
  for (const char* spec :
       {"ecsq(bits=0)", "ecsq(bits=17)", "ecsq(bits=2, step=1)", "ecsq(as=ecsq(bits=2))",
        "ecsq(as=nothing)", "ecsq(error=2)", "ecsq(step=0)"}) {
    EXPECT_THROW(make_codec(spec), InvalidArgument) << spec;
  }
  EXPECT_EQ(make_codec("ecsq")->spec(), "ecsq(bits=2.5)");
  const CodecPtr as = make_codec("ecsq(as=quantize(bits=4))");
  EXPECT_EQ(make_codec(as->spec())->spec(), as->spec());
  ASSERT_NE(ecsq_options(*as), nullptr);
  EXPECT_EQ(ecsq_options(*as)->goal, EcsqOptions::Goal::kAs);
  EXPECT_EQ(ecsq_options(*make_codec("topk")), nullptr);
}

}  // namespace
}  // namespace thinwire
