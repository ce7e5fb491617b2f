#include "thinwire/common/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "temporary_file.h"
#include "thinwire/common/error.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

TEST(MetricsLog, WritesOneObjectALineInTheOrderGiven) {
  const TemporaryFile file("metrics.jsonl");
  MetricsLog log(file.path());
  log.write("step", {{"step", std::int64_t{1}},
                     {"loss", 0.1},
                     {"finite", true},
                     {"name", std::string("a \"b\"\n")}});
  // Read while the log is open: every line is flushed.
  EXPECT_EQ(file.text(),
            "{\"event\":\"step\",\"step\":1,\"loss\":0.1,\"finite\":true,"
            "\"name\":\"a \\\"b\\\"\\n\"}\n");
  log.write("end", {});
  EXPECT_THAT(file.text(), HasSubstr("\n{\"event\":\"end\"}\n"));
}

TEST(MetricsLog, NumbersSurviveAndNonFiniteOnesAreNull) {
  const TemporaryFile file("metrics.jsonl");
  MetricsLog log(file.path());
  const double third = 1.0 / 3;
  const std::int64_t large = (std::int64_t{1} << 62) + 1;
  log.write("x", {{"third", third},
                  {"large", large},
                  {"nan", std::numeric_limits<double>::quiet_NaN()},
                  {"inf", -std::numeric_limits<double>::infinity()}});
  const auto line = nlohmann::json::parse(file.text());
  EXPECT_EQ(line["third"].get<double>(), third);
  EXPECT_EQ(line["large"].get<std::int64_t>(), large);
  EXPECT_TRUE(line["nan"].is_null());
  EXPECT_TRUE(line["inf"].is_null());
}

TEST(MetricsLog, TextThatIsNotUtf8StaysJson) {
  const TemporaryFile file("metrics.jsonl");
  MetricsLog(file.path())
      .write("x", {{"host", std::string("a\xff"
                                        "b")}});
  EXPECT_EQ(nlohmann::json::parse(file.text())["host"], "a\uFFFDb");
}

TEST(MetricsLog, StartsAfresh) {
  const TemporaryFile file("metrics.jsonl");
  MetricsLog(file.path()).write("old", {});
  MetricsLog(file.path()).write("new", {});
  EXPECT_EQ(file.text(), "{\"event\":\"new\"}\n");
}

TEST(MetricsLog, ThreadsDoNotMixTheirLines) {
  const TemporaryFile file("metrics.jsonl");
  {
    MetricsLog log(file.path());
    std::vector<std::jthread> threads;
    for (std::int64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&log, t] {
        for (std::int64_t i = 0; i < 100; ++i) log.write("x", {{"thread", t}, {"i", i}});
      });
    }
  }
  std::ifstream in(file.path());
  std::vector<std::int64_t> next(4, 0);
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line);
    EXPECT_EQ(json["i"].get<std::int64_t>(), next.at(json["thread"].get<std::size_t>())++);
  }
  EXPECT_EQ(next, std::vector<std::int64_t>(4, 100));
}

TEST(MetricsLog, ErrorsNameFileAndReason) {
  const auto error_of = [](const auto& action) -> std::string {
    try {
      action();
    } catch (const FileError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(error_of([] { MetricsLog("/nonexistent/m.jsonl"); }),
            "cannot write the metrics log \"/nonexistent/m.jsonl\": No such file or directory");
  // Linux's full disk.
  EXPECT_THAT(error_of([] { MetricsLog("/dev/full").write("x", {}); }),
              HasSubstr("\"/dev/full\": No space left on device"));
}

}  // namespace
}  // namespace thinwire
