#include "thinwire/comm/average/memory/error_feedback.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "thinwire/tests/compressors/codecs/payloads.h"

namespace thinwire {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(ErrorFeedback, ResidualIsWhatTheReconstructionLacks) {
  ErrorFeedback feedback;
  EXPECT_TRUE(feedback.residual("w").empty());
  std::vector<float> values = {1, 2, 3};
  feedback.correct("w", values);
  EXPECT_THAT(values, ElementsAre(1, 2, 3));
  EXPECT_THAT(feedback.residual("w"), ElementsAre(0, 0, 0));
  feedback.commit("w", values, std::vector<float>{1, 1, 4});
  EXPECT_THAT(feedback.residual("w"), ElementsAre(0, 1, -1));
  feedback.correct("w", values);
  EXPECT_THAT(values, ElementsAre(1, 3, 2));
}

// Over T steps: sum of decoded = sum of gradients − last residual, whatever the codec loses.
TEST(ErrorFeedback, Telescopes) {
  for (const char* spec : {"quantize(bits=1)", "quantize(bits=2, norm=l2)", "cast(bf16)",
                           "quantize(bits=4, rounding=stochastic)"}) {
    const auto codec = make_codec(spec);
    ErrorFeedback feedback;
    constexpr std::size_t kSize = 300;
    std::vector<double> gradients(kSize), decoded(kSize);
    for (std::uint32_t step = 0; step < 50; ++step) {
      auto values = testing::normal_values(kSize, step);
      for (std::size_t i = 0; i < kSize; ++i) gradients[i] += values[i];
      feedback.correct("w", values);
      const auto sent = testing::round_trip(*codec, values, {.step = step});
      feedback.commit("w", values, sent);
      for (std::size_t i = 0; i < kSize; ++i) decoded[i] += sent[i];
    }
    for (std::size_t i = 0; i < kSize; ++i) {
      EXPECT_NEAR(gradients[i], decoded[i] + feedback.residual("w")[i], 1e-4) << spec;
    }
  }
}

TEST(ErrorFeedback, AStepWithoutCommitLeavesTheResidual) {
  ErrorFeedback feedback;
  std::vector<float> values = {1, 2};
  feedback.commit("w", values, std::vector<float>{0, 0});
  const std::vector<float> before(feedback.residual("w").begin(), feedback.residual("w").end());
  std::vector<float> poisoned = {NAN, 1};
  feedback.correct("w", poisoned);
  EXPECT_EQ(before,
            std::vector<float>(feedback.residual("w").begin(), feedback.residual("w").end()));
  feedback.commit("w", poisoned, values);  // refused: the difference is not finite
  EXPECT_EQ(before,
            std::vector<float>(feedback.residual("w").begin(), feedback.residual("w").end()));
}

TEST(ErrorFeedback, DecayScalesTheResidual) {
  ErrorFeedback feedback({.decay = 0.5});
  std::vector<float> values = {4};
  feedback.commit("w", values, std::vector<float>{2});
  feedback.correct("w", values);
  EXPECT_THAT(values, ElementsAre(5));
}

// A step of a reset may be dropped like any other, and then nothing is lost.
TEST(ErrorFeedback, AResetLastsOnlyIfItsStepIsKept) {
  const ErrorFeedbackOptions options{.reset_every = 2};
  ErrorFeedback feedback;
  feedback.commit("w", std::vector<float>{4}, std::vector<float>{1});
  std::vector<float> values = {1};
  feedback.correct("w", values, options, /*step=*/2);
  EXPECT_THAT(values, ElementsAre(1));
  EXPECT_THAT(feedback.residual("w"), ElementsAre(3));
  feedback.correct("w", values, options, /*step=*/3);
  EXPECT_THAT(values, ElementsAre(4));
  values = {1};
  feedback.correct("w", values, options, /*step=*/4);
  feedback.commit("w", values, std::vector<float>{0.5});
  EXPECT_THAT(feedback.residual("w"), ElementsAre(0.5));
}

TEST(ErrorFeedback, LayersAreKeptByName) {
  ErrorFeedback feedback;
  feedback.commit("a", std::vector<float>{1}, std::vector<float>{0});
  feedback.commit("b", std::vector<float>{2, 2}, std::vector<float>{0, 0});
  EXPECT_THAT(feedback.residual("a"), ElementsAre(1));
  EXPECT_THAT(feedback.residual("b"), ElementsAre(2, 2));
  feedback.reset();
  EXPECT_THAT(feedback.residual("b"), ElementsAre(0, 0));
}

TEST(ErrorFeedback, StateRestoresBitByBit) {
  ErrorFeedback feedback;
  const auto values = testing::normal_values(100, 3);
  feedback.commit("w", values, std::vector<float>(100));
  ErrorFeedback restored;
  restored.load_state(feedback.state());
  EXPECT_TRUE(std::ranges::equal(restored.residual("w"), feedback.residual("w")));
}

TEST(ErrorFeedback, RefusesAnotherSizeAndBadOptions) {
  ErrorFeedback feedback;
  std::vector<float> two(2), three(3);
  feedback.correct("w", two);
  EXPECT_THAT([&] { feedback.correct("w", three); },
              ThrowsMessage<InvalidArgument>(HasSubstr("'w' has 3 elements")));
  EXPECT_THROW(feedback.commit("w", three, three), InvalidArgument);
  EXPECT_THROW(feedback.commit("w", two, three), InvalidArgument);
  EXPECT_THROW(ErrorFeedback({.decay = 1.5}), InvalidArgument);
  EXPECT_THROW(ErrorFeedback({.reset_every = -1}), InvalidArgument);
}

}  // namespace
}  // namespace thinwire
