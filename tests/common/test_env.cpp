#include "thinwire/common/env.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

Env env_of(const std::map<std::string, std::string>& variables) {
  return Env([&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  });
}

std::string error_of(const std::string& name, const std::string& value) {
  try {
    env_of({{name, value}});
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "no error";
}

TEST(Env, DefaultsAreTheDocumentedOnes) {
  const Env env = env_of({});
  EXPECT_EQ(env.log_level, "info");
  EXPECT_EQ(env.compression, "");
  EXPECT_EQ(env.backend, "auto");
  EXPECT_EQ(env.timeout, std::chrono::minutes(5));
  EXPECT_EQ(env.check_replicas_every, 0);
  EXPECT_EQ(env.gloo_interface, "");
  EXPECT_EQ(env.data_dir, "");
  EXPECT_EQ(env.link_model, "");
  EXPECT_EQ(env.simd, "");
  EXPECT_EQ(env.postmortem, "");
  EXPECT_EQ(env.store, "");
  EXPECT_FALSE(env.disable_cuda);
}

TEST(Env, ReadsEveryVariable) {
  const Env env = env_of({{"THINWIRE_LOG_LEVEL", "debug"},
                          {"THINWIRE_COMPRESSION", "quantize(bits=4)"},
                          {"THINWIRE_BACKEND", "gloo"},
                          {"THINWIRE_TIMEOUT", "1.5"},
                          {"THINWIRE_CHECK_REPLICAS", "10"},
                          {"THINWIRE_GLOO_INTERFACE", "eth0"},
                          {"THINWIRE_DATA", "/data"},
                          {"THINWIRE_LINK_MODEL", "/link.json"},
                          {"THINWIRE_SIMD", "AVX2"},
                          {"THINWIRE_POSTMORTEM", "/failures"},
                          {"THINWIRE_STORE", "a:29500"},
                          {"THINWIRE_DISABLE_CUDA", "1"}});
  EXPECT_EQ(env.log_level, "debug");
  EXPECT_EQ(env.compression, "quantize(bits=4)");
  EXPECT_EQ(env.backend, "gloo");
  EXPECT_EQ(env.timeout, std::chrono::milliseconds(1500));
  EXPECT_EQ(env.check_replicas_every, 10);
  EXPECT_EQ(env.gloo_interface, "eth0");
  EXPECT_EQ(env.data_dir, "/data");
  EXPECT_EQ(env.link_model, "/link.json");
  EXPECT_EQ(env.simd, "AVX2");
  EXPECT_EQ(env.postmortem, "/failures");
  EXPECT_EQ(env.store, "a:29500");
  EXPECT_TRUE(env.disable_cuda);
  for (const auto& variable : env.variables()) EXPECT_TRUE(variable.is_set) << variable.name;
}

TEST(Env, EmptyCountsAsUnset) {
  const Env env = env_of({{"THINWIRE_BACKEND", ""}, {"THINWIRE_TIMEOUT", ""}});
  EXPECT_EQ(env.backend, "auto");
  EXPECT_EQ(env.timeout, std::chrono::minutes(5));
  for (const auto& variable : env.variables()) EXPECT_FALSE(variable.is_set) << variable.name;
}

TEST(Env, ErrorsNameVariableValueAndWhatIsAccepted) {
  EXPECT_EQ(error_of("THINWIRE_BACKEND", "glo"),
            "the environment variable THINWIRE_BACKEND='glo' must be auto, mpi, gloo or nccl");
  EXPECT_THAT(error_of("THINWIRE_LOG_LEVEL", "WARN"),
              AllOf(HasSubstr("THINWIRE_LOG_LEVEL='WARN'"), HasSubstr("trace, debug, info, warn")));
  EXPECT_THAT(error_of("THINWIRE_DISABLE_CUDA", "yes"), HasSubstr("must be 0 or 1"));
  for (const char* value : {"0", "-1", "nan", "inf", "1e9", "5s", " 5", "0x10"}) {
    EXPECT_THAT(error_of("THINWIRE_TIMEOUT", value),
                AllOf(HasSubstr(value), HasSubstr("from 0.001 to 2592000")));
  }
  for (const char* value : {"-1", "1.5", "99999999999", "on"}) {
    EXPECT_THAT(error_of("THINWIRE_CHECK_REPLICAS", value), HasSubstr("a whole number, 0 or more"));
  }
}

TEST(Env, EveryVariableIsDescribedOnce) {
  const Env env = env_of({});
  std::map<std::string, int> seen;
  for (const auto& variable : env.variables()) {
    EXPECT_TRUE(variable.name.starts_with("THINWIRE_")) << variable.name;
    EXPECT_FALSE(variable.description.empty()) << variable.name;
    EXPECT_EQ(++seen[variable.name], 1) << variable.name;
    const bool decides =
        variable.name == "THINWIRE_COMPRESSION" || variable.name == "THINWIRE_CHECK_REPLICAS";
    EXPECT_EQ(variable.must_agree, decides) << variable.name;
  }
  EXPECT_EQ(seen.size(), 12u);
}

TEST(Env, FindsVariablesThatNobodyReads) {
  ASSERT_EQ(setenv("THINWIRE_TIMEOUTS", "3", 1), 0);
  ASSERT_EQ(setenv("THINWIRE_TIMEOUT", "3", 1), 0);
  EXPECT_THAT(Env::unknown_variables(),
              AllOf(Contains("THINWIRE_TIMEOUTS"), Not(Contains("THINWIRE_TIMEOUT"))));
  unsetenv("THINWIRE_TIMEOUTS");
  unsetenv("THINWIRE_TIMEOUT");
  EXPECT_THAT(Env::unknown_variables(), Not(Contains("THINWIRE_TIMEOUTS")));
}

}  // namespace
}  // namespace thinwire
