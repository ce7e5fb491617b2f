#include "thinwire/common/pattern.h"

#include <gtest/gtest.h>

namespace thinwire {
namespace {

TEST(MatchesPattern, StarsAndQuestionMarks) {
  EXPECT_TRUE(matches_pattern("*", ""));
  EXPECT_TRUE(matches_pattern("a*c*e", "abcde"));
  EXPECT_TRUE(matches_pattern("a*c", "acbc"));
  EXPECT_TRUE(matches_pattern("a?c", "abc"));
  EXPECT_TRUE(matches_pattern("**.weight", "layer.1.weight"));
  EXPECT_FALSE(matches_pattern("a?c", "ac"));
  EXPECT_FALSE(matches_pattern("a*c", "ab"));
  EXPECT_FALSE(matches_pattern("", "a"));
  EXPECT_FALSE(matches_pattern("weight", "layer.weight"));
}

}  // namespace
}  // namespace thinwire
