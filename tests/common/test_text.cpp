#include "thinwire/common/text.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <locale>
#include <optional>
#include <sstream>
#include <string>

#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire {
namespace {

// What concat() is to write: a stream of the classic locale.
template <typename... Values>
std::string streamed(const Values&... values) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  (out << ... << values);
  return out.str();
}

struct Streamable {
  int value;
  friend std::ostream& operator<<(std::ostream& out, const Streamable& it) {
    return out << "value " << it.value;
  }
};
enum Unscoped { kFirst, kSecond };

#define EXPECT_AS_STREAMED(...) EXPECT_EQ(concat(__VA_ARGS__), streamed(__VA_ARGS__))

TEST(Concat, WritesWhatAStreamWrites) {
  EXPECT_EQ(concat(), "");
  EXPECT_EQ(concat("a ", 3, ' ', -4, " b"), "a 3 -4 b");
  EXPECT_AS_STREAMED(true, false, 'c', "literal", std::string("string"), std::string_view("view"));
  EXPECT_AS_STREAMED(std::numeric_limits<std::int64_t>::min(), ' ',
                     std::numeric_limits<std::int64_t>::max(), ' ',
                     std::numeric_limits<std::uint64_t>::max(), ' ', std::int16_t{-7}, ' ',
                     std::uint32_t{4000000000}, ' ', 5ull, ' ', 5l);
  for (const double value :
       {0.0, -0.0, 1.0, 0.1, 1.0 / 3, 1e-9, 1234567.0, 123456.0, 1e100, -2.5e-5,
        std::numeric_limits<double>::infinity(), 100.0, 1e6, 999999.5}) {
    EXPECT_AS_STREAMED(value);
    EXPECT_AS_STREAMED(static_cast<float>(value));
  }
  EXPECT_EQ(concat(std::numeric_limits<double>::quiet_NaN()), "nan");
  EXPECT_AS_STREAMED(std::filesystem::path("/a folder/file"), Streamable{1000}, kSecond);
  const std::atomic<int> counter = 12;
  EXPECT_EQ(concat(counter), "12");
  char buffer[16] = "cut";
  EXPECT_EQ(concat(buffer, static_cast<const char*>(buffer)), "cutcut");
}

TEST(NumberText, ParsesBackToTheSameNumber) {
  for (const double value : {0.01, 1.0 / 3, 1e-300, 5.0, 1e22}) {
    EXPECT_EQ(std::stod(number_text(value)), value);
  }
  EXPECT_EQ(number_text(0.01), "0.01");
  EXPECT_EQ(fixed_text(2.0 / 3, 2), "0.67");
  EXPECT_EQ(fixed_text(1234567.25, 1), "1234567.2");
  EXPECT_EQ(rounded_text(1234567, 3), "1.23e+06");
  EXPECT_EQ(rounded_text(0.25, 4), "0.25");
}

// A locale as a program may set it: 1.234.567,5.
struct European : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

class InAnotherLocale : public ::testing::Test {
 protected:
  void SetUp() override {
    before_ = std::locale::global(std::locale(std::locale::classic(), new European));
  }
  void TearDown() override { std::locale::global(before_); }

 private:
  std::locale before_;
};

TEST_F(InAnotherLocale, TextsAreTheSame) {
  std::ostringstream out;
  out << 1234567 << ' ' << 0.5;
  ASSERT_EQ(out.str(), "1.234.567 0,5") << "the locale is not in force";
  EXPECT_EQ(concat(1234567, ' ', 0.5, ' ', Streamable{1000}), "1234567 0.5 value 1000");
  EXPECT_EQ(concat(std::atomic<int>(12345)), "12345");
  EXPECT_EQ(number_text(1234567.5), "1234567.5");
  EXPECT_EQ(fixed_text(1234.5, 1), "1234.5");
  EXPECT_EQ(rounded_text(1234.5, 5), "1234.5");
  EXPECT_EQ(std::string(CommError(1, "all_reduce", 12345, "why").what()),
            "all_reduce #12345 failed, rank 1 is at fault: why");
}

TEST_F(InAnotherLocale, SpecsAreReadAndWrittenAlike) {
  const CodecPtr codec = make_codec("quantize(bits=4, bucket=65536)");
  EXPECT_EQ(codec->spec(), "quantize(bits=4, bucket=65536, norm=minmax, rounding=nearest)");
  EXPECT_EQ(make_codec("topk(density=0.015625)")->facts().density, 0.015625);
  EXPECT_EQ(make_codec("topk(density=0.015625)")->spec(),
            "topk(density=0.015625, select=exact, values=fp32)");
  EXPECT_THROW(make_codec("topk(density=0,5)"), InvalidArgument);
}

}  // namespace
}  // namespace thinwire
