#include "thinwire/launch/report/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/common/text.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::launch {
namespace {

using ::testing::HasSubstr;
using thinwire::testing::error_of;

constexpr int kTraining = 1, kBucket = 2;

std::string span(int track, const std::string& phase, double begin_us, double us) {
  return concat(R"({"name":")", phase, R"(","ph":"X","pid":0,"tid":)", track, R"(,"ts":)",
                1000 + begin_us, R"(,"dur":)", us, "}");
}

std::string trace_of(const std::vector<std::string>& events) {
  std::string text =
      R"([{"name":"process_name","ph":"M","pid":0,"tid":0,"args":{"name":"rank 0"}},
          {"name":"thread_name","ph":"M","pid":0,"tid":1,"args":{"name":"training"}},
          {"name":"thread_name","ph":"M","pid":0,"tid":2,"args":{"name":"bucket 0"}})";
  for (const std::string& event : events) text += ",\n" + event;
  return text + "]\n";
}

// A step of 100 µs: 20 forward, 50 backward, 30 of waiting; 10 µs of coding and 25 of waiting for
// the network that hide, 20 that do not.
std::vector<std::string> step(double at, double scale = 1) {
  return {span(kTraining, "FORWARD", at, 20 * scale),
          span(kTraining, "BACKWARD", at + 20 * scale, 50 * scale),
          span(kBucket, "QUEUE", at + 30 * scale, 5 * scale),
          span(kBucket, "COMPRESS", at + 35 * scale, 10 * scale),
          span(kBucket, "EXCHANGE", at + 45 * scale, 45 * scale),
          span(kTraining, "WAIT", at + 70 * scale, 30 * scale)};
}

TEST(Trace, TakesTheStepOfMedianLengthAndTellsWhatHid) {
  std::vector<std::string> events;
  for (const auto& [at, scale] : {std::pair{0.0, 5.0}, {1000.0, 1.0}, {2000.0, 0.5}}) {
    for (const std::string& event : step(at, scale)) events.push_back(event);
  }
  const TraceStep found = parse_trace(trace_of(events), "folder/run.json");
  EXPECT_EQ(found.name, "run");
  EXPECT_EQ(found.steps, 3);
  EXPECT_NEAR(found.seconds, 100e-6, 1e-9);
  EXPECT_NEAR(found.backward_end, 70e-6, 1e-9);
  EXPECT_NEAR(found.hidden, 35e-6, 1e-9);
  EXPECT_NEAR(found.exposed, 20e-6, 1e-9);
  ASSERT_EQ(found.spans.size(), 6u);
  EXPECT_EQ(found.spans[0].track, "training");
  EXPECT_NEAR(found.spans[0].begin, 0, 1e-12);
}

TEST(Trace, SpansThatOverlapCountOnce) {
  auto events = step(0);
  events.push_back(span(3, "COMPRESS", 40, 10));
  EXPECT_NEAR(parse_trace(trace_of(events), "run").hidden, 35e-6, 1e-9);
}

TEST(Trace, WithoutStepsTheLastSpans) {
  std::vector<std::string> events;
  for (int i = 0; i < 100; ++i) events.push_back(span(kBucket, "EXCHANGE", 10 * i, 5));
  const TraceStep found = parse_trace(trace_of(events), "run");
  EXPECT_EQ(found.steps, 0);
  EXPECT_EQ(found.spans.size(), 60u);
  EXPECT_NEAR(found.seconds, 595e-6, 1e-9);
}

TEST(Trace, ErrorsNameTheFile) {
  const auto error = [](const std::string& text) {
    return error_of<FileError>([&] { parse_trace(text, "t.json"); });
  };
  EXPECT_THAT(error("[{"), HasSubstr("t.json: not valid JSON"));
  EXPECT_THAT(error("[]"), HasSubstr("t.json: a timeline without a span"));
  EXPECT_THAT(error("[{\"pid\":0}]"), HasSubstr("t.json: [0]: field 'ph' is missing"));
}

}  // namespace
}  // namespace thinwire::launch
