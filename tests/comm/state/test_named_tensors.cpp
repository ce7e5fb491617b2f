#include "thinwire/comm/state/named_tensors.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "thinwire/comm/state/merge.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/common/temporary_file.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

NamedTensors example() {
  NamedTensors tensors = {
      {"world", integer_tensor(2)},     {"steps", integer_tensor(7)},
      {"text", text_tensor("größe\n")}, {"averager/residual/w", at::tensor({1.0f, -2.0f, 0.5f})},
      {"empty", at::empty({0, 3})},     {"scalar", at::scalar_tensor(2.5)}};
  for (const auto type : {at::kHalf, at::kBFloat16, at::kDouble, at::kInt, at::kShort, at::kChar,
                          at::kByte, at::kBool, at::kLong})
    tensors[toString(type)] = at::arange(12).view({3, 4}).to(type).t();  // not contiguous
  return tensors;
}

TEST(NamedTensors, AFileGivesTheSameBits) {
  const TemporaryFile file("tensors");
  NamedTensors before = example();
  before["nan"] = at::full({2}, std::nan(""));
  save_tensors(before, file.path());
  save_tensors(before, file.path());  // overwrites
  const NamedTensors after = load_tensors(file.path());
  ASSERT_EQ(after.size(), before.size());
  for (const auto& [name, tensor] : before) EXPECT_TRUE(same_bits(tensor, after.at(name))) << name;
  EXPECT_EQ(text_of(after, "text"), "größe\n");
  EXPECT_EQ(integer_of(after, "steps"), 7);
  std::ofstream(file.path(), std::ios::binary) << "<!DOCTYPE html>";
  EXPECT_THAT(error_of<FileError>([&] { load_tensors(file.path()); }), HasSubstr("an HTML page"));
  EXPECT_THAT(error_of([&] {
                save_tensors({{"c", at::zeros({1}, at::kComplexFloat)}}, file.path());
              }),
              HasSubstr("ComplexFloat"));
}

TEST(NamedTensors, SayWhatIsMissingOrOfAnotherType) {
  const NamedTensors tensors = example();
  EXPECT_THAT(error_of([&] { integer_of(tensors, "step"); }), HasSubstr("no tensor 'step'"));
  EXPECT_THAT(error_of([&] { integer_of(tensors, "text"); }), HasSubstr("one int64, got Byte"));
  EXPECT_THAT(error_of([&] { text_of(tensors, "world"); }), HasSubstr("must be bytes, got Long"));
  EXPECT_FALSE(same_bits(at::zeros({2}), at::zeros({2, 1})));
  EXPECT_FALSE(same_bits(at::zeros({1}), -at::zeros({1})));
}

TEST(NamedTensors, PartsGoInAndOutByPrefix) {
  NamedTensors whole = {{"a", integer_tensor(1)}, {"averagers", integer_tensor(2)}};
  insert_part(whole, "averager/", {{"x/y", integer_tensor(3)}, {"z", integer_tensor(4)}});
  EXPECT_EQ(whole.size(), 4);
  const NamedTensors part = part_of(whole, "averager/");
  ASSERT_EQ(part.size(), 2);
  EXPECT_EQ(integer_of(part, "x/y"), 3);
}

TEST(MergeStates, MeansWhatIsOwedAndKeepsTheRest) {
  NamedTensors zero = example(), one = example();
  one["averager/residual/w"] = at::tensor({3.0f, 0.0f, 0.5f});
  zero["experts.0"] = at::ones({2});
  one["experts.1"] = at::zeros({2});
  const NamedTensors merged = merge_states({zero, one}, 5);
  EXPECT_EQ(integer_of(merged, "world"), 5);
  EXPECT_EQ(integer_of(merged, "steps"), 7);
  EXPECT_TRUE(at::equal(merged.at("averager/residual/w"), at::tensor({2.0f, -1.0f, 0.5f})));
  EXPECT_TRUE(merged.contains("experts.0") && merged.contains("experts.1"));

  EXPECT_THAT(error_of([&] { merge_states({zero}, 1); }),
              HasSubstr("the states of all 2 ranks are needed, got 1"));
  EXPECT_THAT(error_of([&] { merge_states({}, 1); }), HasSubstr("no states"));
  EXPECT_THAT(error_of([&] { merge_states({zero, one}, 0); }), HasSubstr("got 0"));
  one["steps"] = integer_tensor(8);
  EXPECT_THAT(error_of([&] {
                merge_states({zero, one}, 1);
              }),
              AllOf(HasSubstr("state 1"), HasSubstr("'steps' (8) differs (7)")));
}

}  // namespace
}  // namespace thinwire
