#include "thinwire/compressors/kernels/simd.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/dispatch.h"
#include "thinwire/tests/support/simd_targets.h"

namespace thinwire::kernels {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(Simd, TheBestTargetIsUsedUntilOneIsNamed) {
  ASSERT_FALSE(simd_targets().empty());
  EXPECT_EQ(simd_target(), simd_targets().front());
  testing::for_each_simd_target(
      [](const std::string& target) { EXPECT_EQ(simd_target(), target); });
  EXPECT_EQ(simd_target(), simd_targets().front());
  EXPECT_THAT([] { set_simd_target("AVX9"); },
              ThrowsMessage<InvalidArgument>(HasSubstr(simd_targets().front())));
}

// The place of a target in the tables of functions: lower is better.
TEST(Simd, ANamedTargetIsTheOneThatIsCalled) {
  std::vector<std::size_t> places;
  testing::for_each_simd_target(
      [&](const std::string&) { places.push_back(chosen_target().GetIndex()); });
  EXPECT_TRUE(std::ranges::is_sorted(places, std::less_equal<>())) << "each target has its own";
}

// Highway's own choice belongs to every library of the process that uses it.
TEST(Simd, OtherUsersOfHighwayKeepTheirs) {
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  const std::int64_t supported = hwy::SupportedTargets();
  const std::size_t chosen = hwy::GetChosenTarget().GetIndex();
  testing::for_each_simd_target([&](const std::string& target) {
    EXPECT_EQ(hwy::SupportedTargets(), supported) << target;
    EXPECT_EQ(hwy::GetChosenTarget().GetIndex(), chosen) << target;
  });
  // Nor does theirs change ours.
  const std::size_t ours = chosen_target().GetIndex();
  hwy::SetSupportedTargetsForTest(HWY_EMU128);
  hwy::GetChosenTarget().Update(HWY_EMU128);
  EXPECT_EQ(chosen_target().GetIndex(), ours);
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace thinwire::kernels
