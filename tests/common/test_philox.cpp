#include "thinwire/common/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace thinwire {
namespace {

using Block = std::array<std::uint32_t, 4>;

// The three philox4x32-10 vectors of Random123's known-answer file.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, IsAConstantExpression) {
  static_assert(philox4x32({0, 0, 0, 0}, {0, 0})[0] == 0x6627e8d5);
}

TEST(PhiloxStream, WordsAreTheBlocksInOrder) {
  const auto stream = PhiloxStream::of({.seed = 3, .step = 5, .layer = 2, .rank = 1});
  for (std::uint64_t i = 0; i < 16; ++i) EXPECT_EQ(stream.word(i), stream.block(i / 4)[i % 4]);
  // Beyond 2^32 blocks the high half of the counter counts.
  const std::uint64_t far = 4 * ((std::uint64_t{1} << 32) + 1);
  EXPECT_EQ(stream.block(far / 4), philox4x32({1, 1, stream.salt[0], stream.salt[1]}, stream.key));
  EXPECT_NE(stream.block(far / 4), stream.block(1));
}

TEST(PhiloxStream, EveryFieldOfTheKeyCountsAndTheFirstElementDoesNot) {
  const std::uint64_t high = std::uint64_t{1} << 32;
  const RandomKey keys[] = {{},           {.seed = 1}, {.seed = high}, {.step = 1}, {.step = high},
                            {.layer = 1}, {.rank = 1}, {.stage = 1}};
  std::set<Block> blocks;
  for (const auto& key : keys) blocks.insert(PhiloxStream::of(key).block(0));
  EXPECT_EQ(blocks.size(), std::size(keys));
  EXPECT_EQ(PhiloxStream::of({.first_element = 9}).block(0), PhiloxStream::of({}).block(0));
}

TEST(PhiloxStream, UniformNumbersHaveTheMomentsOfTheUniform) {
  constexpr int kCount = 1 << 16;
  const auto stream = PhiloxStream::of({.seed = 42});
  double sum = 0, squares = 0;
  for (int i = 0; i < kCount; ++i) {
    const float u = stream.uniform(static_cast<std::uint64_t>(i));
    ASSERT_GE(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    ASSERT_EQ(std::floor(u * 0x1p24f), u * 0x1p24f);
    sum += u;
    squares += double{u} * u;
  }
  // Five standard deviations of each mean: sqrt(1/12) and sqrt(4/45) over sqrt(count).
  EXPECT_NEAR(sum / kCount, 0.5, 5 * std::sqrt(1.0 / 12 / kCount));
  EXPECT_NEAR(squares / kCount, 1.0 / 3, 5 * std::sqrt(4.0 / 45 / kCount));
}

}  // namespace
}  // namespace thinwire
