#include "thinwire/common/timeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "temporary_file.h"
#include "thinwire/common/error.h"

namespace thinwire {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;
using ::testing::HasSubstr;
using Json = nlohmann::json;

// The events of one phase, in the order of the file.
std::vector<Json> events(const TemporaryFile& file, const std::string& phase) {
  std::vector<Json> found;
  for (const auto& event : Json::parse(file.text())) {
    if (event["ph"] == phase) found.push_back(event);
  }
  return found;
}

TEST(Timeline, IsValidAfterEveryEvent) {
  const TemporaryFile file("timeline.json");
  Timeline timeline(file.path(), 3);
  EXPECT_EQ(Json::parse(file.text()).size(), 1u);
  const auto begin = Timeline::Clock::now();
  for (std::size_t i = 1; i <= 20; ++i) {
    timeline.record("bucket 0", "COMPRESS", begin, begin + microseconds(i));
    EXPECT_EQ(events(file, "X").size(), i);
  }
}

TEST(Timeline, WritesChromesFields) {
  const TemporaryFile file("timeline.json");
  Timeline timeline(file.path(), 3);
  const auto begin = Timeline::Clock::now();
  timeline.record("bucket \"0\"", "EXCHANGE", begin, begin + nanoseconds(1'234'567), 4096);
  timeline.record("bucket 1", "QUEUE", begin + microseconds(10), begin + microseconds(11));
  timeline.record("bucket \"0\"", "DECOMPRESS", begin, begin);

  const auto names = events(file, "M");
  ASSERT_EQ(names.size(), 3u);
  EXPECT_EQ(names[0]["name"], "process_name");
  EXPECT_EQ(names[0]["args"]["name"], "rank 3");
  EXPECT_EQ(names[1]["name"], "thread_name");
  EXPECT_EQ(names[1]["args"]["name"], "bucket \"0\"");
  EXPECT_EQ(names[2]["args"]["name"], "bucket 1");

  const auto spans = events(file, "X");
  ASSERT_EQ(spans.size(), 3u);
  EXPECT_EQ(spans[0]["name"], "EXCHANGE");
  EXPECT_EQ(spans[0]["pid"], 3);
  EXPECT_EQ(spans[0]["dur"], 1234.567);
  EXPECT_EQ(spans[0]["args"]["bytes"], 4096);
  EXPECT_EQ(spans[0]["tid"], names[1]["tid"]);
  EXPECT_EQ(spans[1]["tid"], names[2]["tid"]);
  EXPECT_EQ(spans[2]["tid"], spans[0]["tid"]);
  EXPECT_FALSE(spans[1].contains("args"));
  // A double holds the wall clock's microseconds to a quarter.
  EXPECT_NEAR(spans[1]["ts"].get<double>() - spans[0]["ts"].get<double>(), 10, 0.5);
}

TEST(Timeline, TimesAreTheWallClocks) {
  const TemporaryFile file("timeline.json");
  const auto now = [] {
    return std::chrono::duration<double, std::micro>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  };
  const double before = now();
  Timeline timeline(file.path(), 0);
  const auto begin = Timeline::Clock::now();
  timeline.record("t", "QUEUE", begin, begin);
  const double ts = events(file, "X").at(0)["ts"];
  // The clock may be set while the test runs; a minute tells the epoch all the same.
  EXPECT_NEAR(ts, before, 60e6);
}

TEST(Timeline, SpansRecordThemselvesAndNullIsNothing) {
  const TemporaryFile file("timeline.json");
  Timeline timeline(file.path(), 0);
  {
    Timeline::Span span(&timeline, "bucket 0", "COMPRESS", 7);
    Timeline::Span nothing(nullptr, "bucket 0", "COMPRESS");
    EXPECT_TRUE(events(file, "X").empty());
  }
  const auto spans = events(file, "X");
  ASSERT_EQ(spans.size(), 1u);
  EXPECT_GE(spans[0]["dur"].get<double>(), 0);
  EXPECT_EQ(spans[0]["args"]["bytes"], 7);
}

TEST(Timeline, TakesEventsOfSeveralThreads) {
  const TemporaryFile file("timeline.json");
  Timeline timeline(file.path(), 0);
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&timeline, t] {
        for (int i = 0; i < 50; ++i) {
          Timeline::Span span(&timeline, "bucket " + std::to_string(t), "EXCHANGE");
        }
      });
    }
  }
  EXPECT_EQ(events(file, "X").size(), 200u);
  EXPECT_EQ(events(file, "M").size(), 5u);
}

TEST(Timeline, ErrorsNameFileAndReason) {
  try {
    Timeline timeline("/nonexistent/t.json", 0);
    FAIL() << "no error";
  } catch (const FileError& error) {
    EXPECT_THAT(error.what(), HasSubstr("\"/nonexistent/t.json\": No such file or directory"));
  }
}

}  // namespace
}  // namespace thinwire
