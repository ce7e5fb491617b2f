// Linked into every test program that uses LibTorch: its default generator starts from a random
// seed, so weights that a test draws would differ from run to run.
#include <ATen/Context.h>
#include <gtest/gtest.h>

namespace {

class SeedEachTest : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override { at::manual_seed(1); }
};

[[maybe_unused]] const bool kListens = [] {
  testing::UnitTest::GetInstance()->listeners().Append(new SeedEachTest);  // which takes ownership
  return true;
}();

}  // namespace
