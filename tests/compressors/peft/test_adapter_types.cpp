#include "thinwire/compressors/peft/adapter_types.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "peft_fixtures.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/adapter_dir.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::peft {
namespace {

using ::testing::HasSubstr;
using thinwire::testing::error_of;

TEST(AdapterTypes, KnowTheValueThatChangesNothing) {
  const auto base = [](const char* type, const char* tensor) {
    return base_of_tensor(type, concat("base_model.model.h.0.attn.", tensor));
  };
  EXPECT_EQ(base("LORA", "lora_A.weight"), 0.0f);
  EXPECT_EQ(base("LORA", "lora_embedding_B"), 0.0f);
  EXPECT_EQ(base("ADALORA", "lora_E"), 0.0f);
  EXPECT_EQ(base("IA3", "ia3_l"), 1.0f);
  EXPECT_EQ(base("LOHA", "hada_w2_b"), 0.0f);
  EXPECT_EQ(base("LOKR", "lokr_w1"), 0.0f);
  EXPECT_EQ(base("ROAD", "road_theta"), 0.0f);
  EXPECT_EQ(base("ROAD", "road_alpha"), 1.0f);
  EXPECT_EQ(base("BOFT", "boft_s"), 1.0f);
  // What is not an adapter's own tensor, and types whose tensors start anywhere.
  EXPECT_EQ(base("LORA", "lora_magnitude_vector"), std::nullopt);
  EXPECT_EQ(base("LOHA", "modules_to_save.weight"), std::nullopt);
  EXPECT_EQ(base("LORA", "ia3_l"), std::nullopt);
  EXPECT_EQ(base("HRA", "hra_u"), std::nullopt);
  EXPECT_EQ(base("LN_TUNING", "ln_tuning_layers.weight"), std::nullopt);
  EXPECT_EQ(base("VERA", "vera_lambda_d"), std::nullopt);
  EXPECT_FALSE(has_bases("LN_TUNING"));
  EXPECT_TRUE(has_bases("VERA"));
}

TEST(AdapterTypes, RolesAreThoseOfTheProduct) {
  EXPECT_EQ(role_of("x.lora_A.weight"), "A");
  EXPECT_EQ(role_of("x.lora_embedding_B"), "B");
  EXPECT_EQ(role_of("lora_unet_down.lora_down.weight"), "A");
  EXPECT_EQ(role_of("lora_unet_up.lora_up.weight"), "B");
  EXPECT_EQ(role_of("x.hada_w1_b"), "hada_w1_b");
  EXPECT_EQ(role_of("x.ia3_l"), "other");
}

AdapterConfig config(const std::string& more) {
  return AdapterConfig::parse(R"({"peft_type": "LORA", "r": 4, "lora_alpha": 8)" + more + "}", "c");
}

TEST(AdapterTypes, ScalesAreMatchedOrRefused) {
  const AdapterConfig plain = config("");
  const auto between = [&](const std::string& more) {
    return scale_between(config(more), plain, "a and b");
  };
  EXPECT_EQ(between(""), 1);
  EXPECT_EQ(between(R"(, "key_of_a_later_release": 3)"), 1);
  EXPECT_EQ(between(R"(, "use_rslora": true)"), 2);  // 8 / sqrt(4) against 8 / 4
  EXPECT_EQ(
      scale_between(AdapterConfig::parse(R"({"peft_type": "LORA", "r": 4, "lora_alpha": 64})", "c"),
                    plain, "a and b"),
      8);
  const auto refusal = [&](const std::string& more) { return error_of([&] { between(more); }); };
  EXPECT_THAT(error_of([&] {
                scale_between(config(R"(, "base_model_name_or_path": "x")"),
                              config(R"(, "base_model_name_or_path": "y")"), "a and b");
              }),
              HasSubstr("a and b: the adapters are for the base models 'x' and 'y'"));
  EXPECT_THAT(refusal(R"(, "use_dora": true)"), HasSubstr("use_dora"));
  EXPECT_THAT(refusal(R"(, "alpha_pattern": {"q": 3})"), HasSubstr("patterns"));
  EXPECT_THAT(refusal(R"(, "init_lora_weights": "pissa_niter_4")"), HasSubstr("change the base"));
  EXPECT_THAT(error_of([&] {
                scale_between(AdapterConfig::parse(R"({"peft_type": "IA3"})", "c"), plain, "x");
              }),
              HasSubstr("types IA3 and LORA"));
  EXPECT_EQ(between(R"(, "base_model_name_or_path": "x")"), 1);  // the other does not say
}

TEST(AdapterTypes, FactorsOfAChangedBaseAreRefused) {
  for (const char* init : {"pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"})
    EXPECT_TRUE(config(concat(R"(, "init_lora_weights": ")", init, "\"")).changes_base()) << init;
  for (const char* init : {"true", "false", "null", "\"gaussian\"", "\"eva\"", "\"orthogonal\""})
    EXPECT_FALSE(config(concat(R"(, "init_lora_weights": )", init)).changes_base()) << init;
  const test::TemporaryDir dir;
  test::write_lora(dir / "in", 1);
  test::write_text(dir / "in/adapter_config.json",
                   R"({"peft_type": "LORA", "r": 4, "init_lora_weights": "olora"})");
  EXPECT_THAT(error_of<FileError>([&] { open_adapter_dir(dir / "in"); }),
              HasSubstr("path_initial_model_for_weight_conversion"));
}

// Each tensor's storage in an adapter of a type.
std::map<std::string, Storage> stored(const std::string& type,
                                      const std::vector<test::FloatTensor>& tensors,
                                      std::vector<std::string>* warnings = nullptr) {
  const test::TemporaryDir dir;
  std::filesystem::create_directories(dir / "in");
  test::write_text(dir / "in/adapter_config.json", concat(R"({"peft_type": ")", type, "\"}"));
  test::write_tensors(dir / "in/adapter_model.safetensors", tensors);
  const DeltaSource source = open_adapter_dir(dir / "in");
  if (warnings != nullptr) *warnings = source.warnings;
  std::map<std::string, Storage> found;
  for (const auto& tensor : source.tensors) found[tensor.info.name] = tensor.storage;
  return found;
}

TEST(AdapterTypes, WhatHasNoBaseTravelsByValue) {
  const auto values = test::normal_values(64, 5);
  EXPECT_THAT(
      stored("LOHA", {{"m.hada_w1_a", {64}, values}, {"m.modules_to_save.weight", {8, 8}, values}}),
      ::testing::ElementsAre(::testing::Pair("m.hada_w1_a", Storage::kTernary),
                             ::testing::Pair("m.modules_to_save.weight", Storage::kValue)));
  std::vector<std::string> warnings;
  EXPECT_THAT(stored("LN_TUNING", {{"m.ln.weight", {64}, values}}, &warnings),
              ::testing::ElementsAre(::testing::Pair("m.ln.weight", Storage::kValue)));
  EXPECT_THAT(warnings,
              ::testing::ElementsAre(HasSubstr("LN_TUNING adapter has a base that is known")));
  EXPECT_THAT(stored("HRA", {{"m.hra_u", {64}, values}}, &warnings),
              ::testing::ElementsAre(::testing::Pair("m.hra_u", Storage::kValue)));
  EXPECT_THAT(stored("LORA", {{"m.lora_A.weight", {64}, values}}, &warnings), ::testing::SizeIs(1));
  EXPECT_THAT(warnings, ::testing::IsEmpty());
}

// kohya's files: no configuration, and a scalar beside each pair of factors.
TEST(AdapterTypes, ScalarsAndTinyTensorsOfPlainFilesTravelByValue) {
  const test::TemporaryDir dir;
  test::write_tensors(dir / "in", {{"u.alpha", {}, {8.0f}},
                                   {"u.gate", {15}, test::normal_values(15, 1)},
                                   {"u.lora_down.weight", {4, 16}, test::normal_values(64, 2)},
                                   {"u.lora_up.weight", {16, 4}, test::normal_values(64, 3)}});
  const DeltaSource source = open_tensors(dir / "in", 0);
  EXPECT_EQ(source.tensors[0].storage, Storage::kValue);
  EXPECT_EQ(source.tensors[1].storage, Storage::kValue);
  EXPECT_EQ(source.tensors[2].storage, Storage::kTernary);
}

}  // namespace
}  // namespace thinwire::peft
