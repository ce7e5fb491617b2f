// What `thinwire bench` is built of: its flags, its data, its check and its rows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <CLI/CLI.hpp>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/launch/cli/bench/check.h"
#include "thinwire/launch/cli/bench/data.h"
#include "thinwire/launch/cli/bench/options.h"
#include "thinwire/launch/cli/bench/report.h"

namespace thinwire::launch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kWorld = 4;
constexpr std::int64_t kSide = 96;
constexpr std::int64_t kNumel = kSide * kSide;

TEST(BenchSizes, TakeSuffixes) {
  EXPECT_EQ(parse_size("4096"), 4096);
  EXPECT_EQ(parse_size("64K"), 65536);
  EXPECT_EQ(parse_size("32m"), 32 << 20);
  EXPECT_EQ(parse_size("1.5G"), 3 * (std::int64_t{1} << 29));
  for (const char* text : {"", "K", "32X", "32MB", "-1", "3", "0", "1e3", "nan", "2T", " 4K"}) {
    EXPECT_THROW(parse_size(text), InvalidArgument) << text;
  }
}

BenchOptions parsed(std::vector<std::string> arguments) {
  CLI::App app;
  BenchOptions options;
  add_bench_flags(app, options);
  std::reverse(arguments.begin(), arguments.end());
  app.parse(arguments);
  return options;
}

TEST(BenchFlags, AreThoseOfNcclTests) {
  const BenchOptions brief =
      parsed({"-b", "1K", "-e", "4K", "-f", "2", "-n", "7", "-w", "3", "-c", "2"});
  EXPECT_THAT(brief.sizes(), ElementsAre(1024, 2048, 4096));
  EXPECT_EQ(brief.iterations, 7);
  EXPECT_EQ(brief.warmup, 3);
  EXPECT_EQ(brief.check, 2);
  const BenchOptions longer = parsed({"--minbytes", "1K", "--maxbytes", "64K", "--stepfactor", "8",
                                      "--iters", "1", "--warmup_iters", "0", "--check", "0"});
  EXPECT_THAT(longer.sizes(), ElementsAre(1024, 8192, 65536));
  EXPECT_THAT(parsed({}).sizes(), ElementsAre(32 << 20));
  EXPECT_THAT(parsed({"-b", "64M"}).sizes(), ElementsAre(64 << 20));
}

TEST(BenchFlags, CodecsAreAList) {
  const auto codecs = parsed({"--codec", "none;quantize(bits=4); topk(density=0.01)"}).codecs;
  ASSERT_EQ(codecs.size(), 2u);
  EXPECT_EQ(codecs[0].str(), "quantize(bits=4)");
  EXPECT_EQ(codecs[1].str(), "topk(density=0.01)");
}

TEST(BenchFlags, WrongValuesNameTheFlag) {
  const std::vector<std::vector<std::string>> wrong = {
      {"--minbytes", "-b", "many"}, {"--maxbytes", "-e", "32MB"},
      {"--stepfactor", "-f", "1"},  {"--iters", "-n", "0"},
      {"--iters", "-n", "2.5"},     {"--warmup_iters", "-w", "-1"},
      {"--check", "-c", "x"},       {"--codec", "--codec", "quantize("}};
  for (const auto& words : wrong) {
    try {
      parsed({words[1], words[2]});
      FAIL() << words[1] << " " << words[2];
    } catch (const CLI::ParseError& error) {
      EXPECT_THAT(error.what(), HasSubstr(words[0]));
      EXPECT_THAT(error.what(), HasSubstr(words[2]));
    }
  }
  try {
    parsed({"-b", "2K", "-e", "1K"}).sizes();
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr("--minbytes 2048 is above --maxbytes 1024"));
  }
}

TEST(BenchData, AnyPartIsThatOfTheWhole) {
  std::vector<float> whole(1000), part(301);
  fill_bench_values(2, 37, 0, whole);
  fill_bench_values(2, 37, 501, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 501, whole.begin() + 802));
}

TEST(BenchData, SumsOfRanksAreExactInFloat) {
  constexpr int kRanks = 60;
  std::vector<float> sum(kNumel), values(kNumel);
  for (int rank = 0; rank < kRanks; ++rank) {
    fill_bench_values(rank, kSide, 0, values);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
  }
  const auto mean = exact_bench_mean(kRanks, kSide, kNumel);
  for (std::size_t i = 0; i < sum.size(); ++i) {
    ASSERT_EQ(static_cast<double>(sum[i]) / kRanks, mean[i]) << i;
  }
}

TEST(BenchData, RanksDifferAndAverageIsNotZero) {
  std::vector<float> one(kNumel), other(kNumel);
  fill_bench_values(0, kSide, 0, one);
  fill_bench_values(1, kSide, 0, other);
  EXPECT_NE(one, other);
  const auto mean = exact_bench_mean(kWorld, kSide, kNumel);
  const double square = std::inner_product(mean.begin(), mean.end(), mean.begin(), 0.0);
  EXPECT_GT(square / kNumel, 1e-3);
}

std::vector<float> to_floats(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

// The mean of what each rank's payload decodes to, with this key's numbers.
std::vector<float> decoded_mean(const Codec& codec, bool second, std::uint64_t seed) {
  const std::array<std::int64_t, 2> shape = {kSide, kSide};
  std::vector<float> values(kNumel), mean(kNumel);
  std::vector<std::byte> payload(codec.max_compressed_bytes(kNumel, DType::kFloat32));
  const auto code = [&](std::vector<float>& from, std::vector<float>& to, int rank,
                        WriteMode mode) {
    ConstTensorView input = view_of(std::span<const float>(from));
    TensorView output = view_of(std::span<float>(to));
    input.shape = output.shape = shape;
    const RandomKey key = {.seed = seed, .rank = static_cast<std::uint32_t>(rank)};
    const std::size_t bytes = codec.compress(input, key, payload);
    codec.decompress(std::span(payload).first(bytes), key, output, mode);
  };
  for (int rank = 0; rank < kWorld; ++rank) {
    fill_bench_values(rank, kSide, 0, values);
    code(values, mean, rank, WriteMode::kAccumulate);
  }
  for (float& value : mean) value /= kWorld;
  if (second) code(mean, mean, kWorld, WriteMode::kAssign);
  return mean;
}

struct Case {
  const char* spec;  // "" without a codec
  Expectation expectation;
};

class BenchCheck : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (GetParam().spec[0] != '\0') codec_ = make_codec(GetParam().spec);
    tensor_ = {.world = kWorld,
               .numel = kNumel,
               .cols = kSide,
               .shape = shape_,
               .codec = codec_.get(),
               .expectation = GetParam().expectation,
               .host_of_rank = hosts_};
  }

  // A right result: for a projection, onto the direction of the data's columns.
  std::vector<float> right() const {
    const auto exact = exact_bench_mean(kWorld, kSide, kNumel);
    if (GetParam().expectation == Expectation::kProjection) {
      std::vector<double> direction(kSide);
      for (std::int64_t i = 0; i < kNumel; ++i) direction[i / kSide] += exact[i] * (i % 3 - 1.0);
      const double square =
          std::inner_product(direction.begin(), direction.end(), direction.begin(), 0.0);
      std::vector<double> factor(kSide);
      for (std::int64_t i = 0; i < kNumel; ++i) {
        factor[i % kSide] += direction[i / kSide] * exact[i] / square;
      }
      std::vector<float> out(kNumel);
      for (std::int64_t i = 0; i < kNumel; ++i) {
        out[i] = static_cast<float>(direction[i / kSide] * factor[i % kSide]);
      }
      return out;
    }
    if (!codec_) return to_floats(exact);
    const bool second = GetParam().expectation == Expectation::kSecondCode ||
                        GetParam().expectation == Expectation::kSlots;
    return decoded_mean(*codec_, second, 99);
  }

  std::string problem_of(const std::vector<float>& out) const {
    return check_bench_mean(out, tensor_).problem;
  }

  const std::array<std::int64_t, 2> shape_ = {kSide, kSide};
  const std::array<int, kWorld> hosts_ = {0, 1, 2, 3};
  CodecPtr codec_;
  CheckedTensor tensor_;
};

TEST_P(BenchCheck, AcceptsTheRightResult) {
  EXPECT_EQ(problem_of(right()), "");
}

TEST_P(BenchCheck, SeesWrongOnes) {
  const std::vector<float> good = right();
  std::vector<float> bad(good.size());
  EXPECT_NE(problem_of(bad), "") << "zeros";
  std::ranges::transform(good, bad.begin(), [](float x) { return kWorld * x; });
  EXPECT_NE(problem_of(bad), "") << "sum instead of mean";
  std::ranges::transform(good, bad.begin(), [](float x) { return x * (kWorld - 1) / kWorld; });
  EXPECT_NE(problem_of(bad), "") << "a rank is missing";
  std::ranges::transform(good, bad.begin(), [](float x) { return -x; });
  EXPECT_NE(problem_of(bad), "") << "other sign";
  std::ranges::rotate_copy(good, good.begin() + 1, bad.begin());
  EXPECT_NE(problem_of(bad), "") << "shifted by one";
  bad = good;
  bad[kNumel / 2] = std::nanf("");
  EXPECT_NE(problem_of(bad), "") << "not a number";
  fill_bench_values(1, kSide, 0, bad);
  EXPECT_NE(problem_of(bad), "") << "one rank's values";
}

INSTANTIATE_TEST_SUITE_P(
    Codecs, BenchCheck,
    ::testing::Values(
        Case{"", Expectation::kExact}, Case{"quantize(bits=4)", Expectation::kSecondCode},
        Case{"quantize(bits=4, rounding=stochastic)", Expectation::kSecondCode},
        Case{"cast(bf16)", Expectation::kSecondCode}, Case{"onebit", Expectation::kSecondCode},
        Case{"terngrad", Expectation::kSecondCode}, Case{"topk(density=0.05)", Expectation::kMean},
        Case{"topk(density=0.05)", Expectation::kLargest},
        Case{"topk(density=0.05, values=bf16)", Expectation::kLargest},
        Case{"randomk(density=0.5)", Expectation::kMean},
        Case{"quantize(bits=8)", Expectation::kHosts}, Case{"ecsq(bits=2)", Expectation::kSlots},
        Case{"spectral(bits=0.5)", Expectation::kSlots},
        Case{"powersgd(rank=2)", Expectation::kProjection}));

TEST(BenchCheck, OneWrongElementOfAnExactMean) {
  std::vector<float> out = to_floats(exact_bench_mean(kWorld, kSide, kNumel));
  out[17] += 0.01f;
  const CheckedTensor tensor = {
      .world = kWorld, .numel = kNumel, .cols = kSide, .shape = {}, .host_of_rank = {}};
  EXPECT_NE(check_bench_mean(out, tensor).problem, "");
}

TEST(RunTimes, AreRanked) {
  const RunTimes one({3});
  EXPECT_EQ(one.p50(), 3);
  EXPECT_EQ(one.p99(), 3);
  const RunTimes four({4, 1, 3, 2});
  EXPECT_EQ(four.min(), 1);
  EXPECT_EQ(four.p50(), 2);
  EXPECT_EQ(four.p99(), 4);
  std::vector<double> hundred(100);
  std::iota(hundred.begin(), hundred.end(), 1);
  EXPECT_EQ(RunTimes(hundred).p50(), 50);
  EXPECT_EQ(RunTimes(hundred).p99(), 99);
  EXPECT_EQ(RunTimes(hundred).max(), 100);
  EXPECT_THROW(RunTimes({}), InvalidArgument);
}

BenchRow sample_row() {
  return {.collective = "all_reduce",
          .size = 1000000,
          .count = 250000,
          .dtype = "float32",
          .codec = "quantize(bits=4)",
          .strategy = "scatter_reduce",
          .wire_bytes = 200000,
          .dense_bytes = 1500000,
          .times = RunTimes({0.002, 0.001, 0.004}),
          .rel_err = 0.25,
          .problem = ""};
}

TEST(BenchJson, HasExactlyTheseFields) {
  const auto json = json_of({{"world", 4}}, {sample_row()});
  const std::string expected =
      R"j({"context":{"world":4},"rows":[{"collective":"all_reduce","size":1000000,)j"
      R"j("count":250000,"dtype":"float32","codec":"quantize(bits=4)",)j"
      R"j("strategy":"scatter_reduce","wire_bytes":200000,"ratio":7.5,)j"
      R"j("time_us":{"min":1000.0,"p50":2000.0,"p99":4000.0,"max":4000.0},)j"
      R"j("algbw":0.5,"wirebw":0.1,"rel_err":0.25}]})j";
  EXPECT_EQ(json.dump(), expected);
}

TEST(BenchJson, UncheckedRowsHaveNoError) {
  BenchRow row = sample_row();
  row.rel_err.reset();
  EXPECT_TRUE(json_of({}, {row})["rows"][0]["rel_err"].is_null());
}

TEST(BenchTable, ColumnsStandUnderTheirTitles) {
  std::ostringstream out;
  BenchTable table(out, {"quantize(bits=4, rounding=stochastic)"});
  table.header();
  table.add(sample_row());
  std::vector<std::string> lines;
  std::istringstream in(out.str());
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 4u);
  const auto ends_under = [&](const std::string& title, const std::string& value) {
    EXPECT_EQ(lines[1].find(title) + title.size(), lines[3].find(value) + value.size()) << title;
  };
  ends_under(" size", " 1000000");
  ends_under("count", "250000");
  ends_under("type", "float32");
  ends_under("wire(B)", "200000");
  ends_under("ratio", "7.50");
  ends_under("time", "2000.0");
  ends_under("algbw", "0.500");
  ends_under("wirebw", "0.100");
  ends_under("rel_err", "2.500e-01");
  EXPECT_EQ(lines[1].find("codec"), lines[3].find("quantize"));
  EXPECT_EQ(lines[1].find("strategy"), lines[3].find("scatter_reduce"));
}

TEST(BenchTable, WrongRowsSaySo) {
  std::ostringstream out;
  BenchTable table(out, {});
  BenchRow row = sample_row();
  row.problem = "off by one";
  table.add(row);
  EXPECT_THAT(out.str(), HasSubstr("WRONG: off by one"));
}

}  // namespace
}  // namespace thinwire::launch
