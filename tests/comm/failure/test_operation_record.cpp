#include "thinwire/comm/failure/operation_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

nlohmann::json parsed(const OperationRecord& record) {
  return nlohmann::json::parse(record.json(1, 3, "an exchange #7", "no answer"));
}

TEST(OperationRecord, TellsWhatEndedAndWhatDidNot) {
  OperationRecord record;
  const auto first = record.begin("one", 4);
  record.begin("two", 5);
  record.end(first);
  const auto told = parsed(record);
  EXPECT_EQ(told["rank"], 1);
  EXPECT_EQ(told["size"], 3);
  EXPECT_EQ(told["failure"]["operation"], "an exchange #7");
  EXPECT_EQ(told["failure"]["text"], "no answer");
  ASSERT_EQ(told["operations"].size(), 2);
  EXPECT_EQ(told["operations"][0]["operation"], "one");
  EXPECT_EQ(told["operations"][0]["sequence"], 4);
  EXPECT_TRUE(told["operations"][0]["seconds"].is_number());
  EXPECT_TRUE(told["operations"][1]["seconds"].is_null());
}

TEST(OperationRecord, KeepsTheNewest) {
  auto record = std::make_unique<OperationRecord>();
  const auto oldest = record->begin("oldest", 0);
  for (std::uint64_t i = 0; i < OperationRecord::kKept; ++i)
    record->end(record->begin(std::string(200, 'x'), i + 1));
  record->end(oldest);  // its place is another's
  const auto told = parsed(*record);
  ASSERT_EQ(told["operations"].size(), OperationRecord::kKept);
  EXPECT_EQ(told["operations"].front()["sequence"], 1);
  EXPECT_EQ(told["operations"].back()["sequence"], OperationRecord::kKept);
  EXPECT_EQ(told["operations"].back()["operation"].get<std::string>().size(), 80);
}

TEST(OperationRecord, WhatAnExceptionEndsHasNotFinished) {
  try {
    const RecordedOperation one("this one fails", 1);
    throw std::runtime_error("a fault");
  } catch (const std::runtime_error&) {
  }
  { const RecordedOperation two("this one does not", 2); }
  const auto told = parsed(OperationRecord::of_process())["operations"];
  ASSERT_GE(told.size(), 2);
  EXPECT_TRUE(told[told.size() - 2]["seconds"].is_null());
  EXPECT_TRUE(told[told.size() - 1]["seconds"].is_number());
}

}  // namespace
}  // namespace thinwire::comm
