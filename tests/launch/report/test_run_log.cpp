#include "thinwire/launch/report/run_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::launch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using thinwire::testing::error_of;

// The lines of a log, of texts that are too long for one line of this file.
const std::string kRun =
    R"({"event":"start","backend":"gloo","compression":"onebit","world_size":2,"hosts":2,)"
    R"("local_size":1,"model":"mlp","threads":1,"cores":2,"min_numel":1024,"parameters":10})"
    "\n"
    R"({"event":"progress","step":1,"train_loss":2.5,"train_seconds":0.5,"sent_bytes":100})"
    "\n"
    R"({"event":"something new","text":"ignored"})"
    "\n"
    R"({"event":"epoch","epoch":1,"step":4,"train_loss":null,"test_accuracy":0.5,)"
    R"("test_loss":1.5,"train_seconds":2,"wire_bytes_per_step":100})"
    "\n"
    R"({"event":"layers","step":4,"layers":[{"name":"a.weight","shape":[3,2],)"
    R"("setting":"onebit","bytes":24,"payload_bytes":11,"relative_error":0.25},)"
    R"({"name":"a.bias","shape":[2],"setting":"none","bytes":8,"payload_bytes":8,)"
    R"("relative_error":null}]})"
    "\n"
    R"({"event":"profile","step":4,"steps":3,"step_seconds":0.5,"forward_seconds":0.1,)"
    R"("backward_seconds":0.2,"exposed_seconds":0.05,"compress_seconds":0.01,)"
    R"("exchange_seconds":0.02,"decompress_seconds":0.03,"compress_cpu_seconds":0.01,)"
    R"("decompress_cpu_seconds":0.02,"buckets":[{"bytes":32,"layers":["a.weight","a.bias"],)"
    R"("ready_seconds":0.2,"begun_seconds":0.21,"finished_seconds":0.25}]})"
    "\n"
    R"({"event":"result","backend":"gloo","compression":"onebit","world_size":2,)"
    R"("model":"mlp","test_accuracy":0.5,"train_seconds":2,"wire_bytes_per_step":100,)"
    R"("dense_bytes_per_step":700})"
    "\n";

TEST(RunLog, ReadsAllThatTheExamplesWrite) {
  const RunLog log = parse_run_log(kRun, "folder/four-bits.jsonl");
  EXPECT_EQ(log.name, "four-bits");
  EXPECT_EQ(log.compression, "onebit");
  EXPECT_EQ(log.world_size, 2);
  EXPECT_EQ(log.min_numel, 1024);
  ASSERT_EQ(log.points.size(), 2u);
  EXPECT_EQ(log.points[0].train_loss, 2.5);
  EXPECT_EQ(log.points[0].sent_bytes, 100);
  EXPECT_FALSE(log.points[0].accuracy);
  // Losses that were not finite are null; without a total the bytes are those of all steps.
  EXPECT_FALSE(log.points[1].train_loss);
  EXPECT_EQ(log.points[1].test_loss, 1.5);
  EXPECT_EQ(log.points[1].sent_bytes, 400);
  ASSERT_EQ(log.layers.size(), 1u);
  EXPECT_THAT(log.layers[0].layers[0].shape, ElementsAre(3, 2));
  EXPECT_EQ(log.layers[0].layers[0].error, 0.25);
  EXPECT_FALSE(log.layers[0].layers[1].error);
  ASSERT_TRUE(log.profile);
  EXPECT_EQ(log.profile->exposed, 0.05);
  EXPECT_THAT(log.profile->buckets[0].layers, ElementsAre("a.weight", "a.bias"));
  EXPECT_TRUE(log.finished);
  EXPECT_EQ(log.dense_bytes_per_step, 700);
}

TEST(RunLog, OfLanguageModelsInBitsPerCharacter) {
  const RunLog log = parse_run_log(
      R"({"event":"evaluation","step":2,"validation_bpc":3.5,"train_seconds":1})", "lm.jsonl");
  EXPECT_EQ(log.loss_unit, "bits per character");
  EXPECT_EQ(log.points[0].test_loss, 3.5);
  EXPECT_FALSE(log.finished);
}

TEST(RunLog, ALineThatWasBeingWrittenIsLeftOut) {
  const std::string torn = kRun.substr(0, kRun.find("\"test_loss\""));
  EXPECT_EQ(parse_run_log(torn, "log").points.size(), 1u);
}

TEST(RunLog, ErrorsNameFileAndLine) {
  const auto error = [](const std::string& text) {
    return error_of<FileError>([&] { parse_run_log(text, "my.jsonl"); });
  };
  EXPECT_THAT(error("{\"event\":\"epoch\",\"step\":1}\n{broken\n{}\n"),
              HasSubstr("my.jsonl: line 2: not valid JSON"));
  EXPECT_THAT(error("{\"step\":1}\n"), HasSubstr("my.jsonl: line 1: field 'event' is missing"));
  EXPECT_THAT(error("{\"event\":\"layers\",\"step\":1,\"layers\":[{\"name\":\"a\"}]}\n"),
              HasSubstr("my.jsonl: line 1: layers[0]: field 'setting' is missing"));
  EXPECT_THAT(error("{\"event\":\"epoch\",\"step\":-1}\n"),
              HasSubstr("line 1: step: expected a whole number"));
  EXPECT_THAT(error(""), HasSubstr("my.jsonl: no line of it tells of a training step"));
}

}  // namespace
}  // namespace thinwire::launch
