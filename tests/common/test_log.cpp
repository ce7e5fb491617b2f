#include "thinwire/common/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <sstream>
#include <thread>
#include <vector>

namespace thinwire {
namespace {

// What `action` writes to standard error, line by line.
std::vector<std::string> lines_of(const auto& action) {
  ::testing::internal::CaptureStderr();
  action();
  std::istringstream text(::testing::internal::GetCapturedStderr());
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

class Log : public ::testing::Test {
 protected:
  void SetUp() override { log::set_level(log::Level::kInfo); }
};

// First, since an identity stays for the rest of the process.
TEST_F(Log, CarriesTimeLevelThenHostAndRank) {
  const auto lines = lines_of([] {
    log::warn("three is ", 3);
    log::set_identity(1, "node%7");
    log::error("with %v {} inside");
  });
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_TRUE(std::regex_match(lines[0], std::regex(R"(\d\d:\d\d:\d\d\.\d{3} warn: three is 3)")))
      << lines[0];
  EXPECT_TRUE(std::regex_match(
      lines[1],
      std::regex(R"(\d\d:\d\d:\d\d\.\d{3} \[rank 1@node%7\] error: with %v \{\} inside)")))
      << lines[1];
}

TEST_F(Log, EscapesWhatATerminalWouldObey) {
  const auto lines = lines_of([] { log::warn("layer '", "\x1b[2J\xc2\x9b", "'\n\tmore"); });
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0], ::testing::EndsWith("warn: layer '\\x1b[2J\\xc2\\x9b'"));
  EXPECT_EQ(lines[1], "\tmore");
}

TEST_F(Log, LevelsFilter) {
  const auto written = [](log::Level level) {
    log::set_level(level);
    return lines_of([] {
             log::trace("t");
             log::debug("d");
             log::info("i");
             log::warn("w");
             log::error("e");
           })
        .size();
  };
  EXPECT_EQ(written(log::Level::kTrace), 5u);
  EXPECT_EQ(written(log::Level::kInfo), 3u);
  EXPECT_EQ(written(log::Level::kError), 1u);
  EXPECT_EQ(written(log::Level::kOff), 0u);
  EXPECT_FALSE(log::enabled(log::Level::kError));
  EXPECT_FALSE(log::enabled(log::Level::kOff));
}

TEST_F(Log, LinesOfThreadsStayWhole) {
  constexpr int kThreads = 4, kLines = 200;
  const auto lines = lines_of([] {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < kLines; ++i) log::info(std::string(60, static_cast<char>('a' + t)));
      });
    }
  });
  ASSERT_EQ(lines.size(), std::size_t{kThreads * kLines});
  const std::regex whole(R"(.*info: (a{60}|b{60}|c{60}|d{60}))");
  for (const auto& line : lines) EXPECT_TRUE(std::regex_match(line, whole)) << line;
}

}  // namespace
}  // namespace thinwire
