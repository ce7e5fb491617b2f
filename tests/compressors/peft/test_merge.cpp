#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "peft_fixtures.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/merge.h"
#include "thinwire/compressors/peft/pack.h"

namespace thinwire::peft {
namespace {

using testing::HasSubstr;

constexpr std::size_t kExperts = 4;
constexpr std::int64_t kRows = 300;

// Four packed adapters and their dense values.
class Merge : public testing::TestWithParam<Granularity> {
 protected:
  Merge() {
    for (std::size_t e = 0; e < kExperts; ++e) {
      const std::string name = concat("in", e);
      // Sums of a shared and an own part, so that experts agree in some entries.
      const auto shared = test::normal_values(4 * kRows, 61);
      auto a = test::normal_values(4 * kRows, 62 + e), b = test::normal_values(4 * kRows, 72 + e);
      for (std::size_t i = 0; i < a.size(); ++i) a[i] += shared[i];
      std::filesystem::create_directories(dir_ / name);
      test::write_text(dir_ / name / kAdapterConfigName, test::kLoraConfig);
      test::write_tensors(dir_ / name / kAdapterModelName,
                          {{"q.lora_A.weight", {4, kRows}, a}, {"q.lora_B.weight", {kRows, 4}, b}});
      pack(open_adapter_dir(dir_ / name), dir_ / concat(e),
           {.density = 0.3, .granularity = GetParam()});
      files_.push_back(std::make_unique<PackedFile>(dir_ / concat(e)));
      pointers_.push_back(files_.back().get());
      dense_.push_back(values_of(*files_.back()));
    }
  }

  // All values of a file, tensor after tensor, by way of unpacking.
  std::vector<float> values_of(const PackedFile& file) {
    unpack_to_dir(file, dir_ / "out", true);
    const SafetensorsFile out(dir_ / "out" / kAdapterModelName);
    std::vector<float> all;
    for (const TensorInfo& info : out.tensors()) {
      const auto values = test::read_floats(out, info.name);
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }

  std::vector<float> merged(MergeMethod method, const std::vector<float>& weights) {
    merge_packed(method, pointers_, weights, dir_ / "m", true);
    return values_of(PackedFile(dir_ / "m"));
  }

  test::TemporaryDir dir_;
  std::vector<std::unique_ptr<PackedFile>> files_;
  std::vector<const PackedFile*> pointers_;
  std::vector<std::vector<float>> dense_;
};

TEST_P(Merge, EqualsTheDenseComputationBitForBit) {
  const std::vector<float> weights{0.5f, 1.25f, -0.75f, 1.0f};
  const auto ties = merged(MergeMethod::kTies, weights);
  const auto average = merged(MergeMethod::kAverage, weights);
  const auto arithmetic = merged(MergeMethod::kTaskArithmetic, weights);
  ASSERT_EQ(ties.size(), dense_[0].size());
  int tied = 0, agreed = 0;
  for (std::size_t i = 0; i < ties.size(); ++i) {
    float sum = 0, agreeing = 0;
    int votes = 0, positive = 0, negative = 0;
    for (const auto& expert : dense_) {
      positive += expert[i] > 0;
      negative += expert[i] < 0;
    }
    const float sign = positive >= negative ? 1.0f : -1.0f;
    tied += positive == negative && positive > 0;
    for (std::size_t e = 0; e < kExperts; ++e) {
      sum += weights[e] * dense_[e][i];
      if (dense_[e][i] * sign > 0) {
        agreeing += weights[e] * dense_[e][i];
        ++votes;
      }
    }
    agreed += votes > 1;
    ASSERT_EQ(arithmetic[i], sum);
    ASSERT_EQ(average[i], sum / 4.0f);
    ASSERT_EQ(ties[i], votes > 0 ? agreeing / static_cast<float>(votes) : 0.0f);
  }
  EXPECT_GT(tied, 20) << "ties must occur for the test to mean something";
  EXPECT_GT(agreed, 100);
}

TEST_P(Merge, MajorityIsTheSignOfTheSumOfSigns) {
  const std::vector<float> weights{0.5f, 1.25f, 0.75f, 1.0f};
  const auto found = merged(MergeMethod::kMajority, weights);
  const PackedFile file(dir_ / "m");
  for (const PackedTensor& tensor : file.manifest().tensors) {
    EXPECT_EQ(tensor.storage, Storage::kTernary);
    float scale = 0;
    for (std::size_t e = 0; e < kExperts; ++e)
      scale += weights[e] * files_[e]->manifest().parts[tensor.part].scale;
    scale /= 4.0f;
    for (std::int64_t i = 0; i < tensor.info.numel(); ++i) {
      const auto at = static_cast<std::size_t>(tensor.offset + i);
      int votes = 0;
      for (const auto& expert : dense_) votes += (expert[at] > 0) - (expert[at] < 0);
      ASSERT_EQ(found[at], scale * static_cast<float>((votes > 0) - (votes < 0)));
    }
  }
}

TEST_P(Merge, CosinesAreThoseOfTheDenseVectors) {
  const auto found = cosine_matrix(pointers_);
  for (std::size_t a = 0; a < kExperts; ++a)
    for (std::size_t b = 0; b < kExperts; ++b) {
      double ab = 0, aa = 0, bb = 0;
      for (std::size_t i = 0; i < dense_[a].size(); ++i) {
        ab += static_cast<double>(dense_[a][i]) * dense_[b][i];
        aa += static_cast<double>(dense_[a][i]) * dense_[a][i];
        bb += static_cast<double>(dense_[b][i]) * dense_[b][i];
      }
      EXPECT_NEAR(found[a * kExperts + b], ab / std::sqrt(aa * bb), 1e-12);
    }
}

INSTANTIATE_TEST_SUITE_P(Granularities, Merge,
                         testing::Values(Granularity::kGlobal, Granularity::kGroup,
                                         Granularity::kTensor),
                         [](const auto& granularity) { return name_of(granularity.param); });

TEST(Majority, CountsAnyNumberOfExperts) {
  for (const std::size_t experts : {1, 2, 3, 5, 9, 33}) {
    std::vector<TernaryPlanes> planes;
    std::vector<PlanesView> views;
    for (std::size_t e = 0; e < experts; ++e) planes.push_back(test::random_planes(1000, 0.6, e));
    for (const auto& expert : planes) views.push_back(expert.view());
    TernaryPlanes out(1000);
    majority(views, out);
    for (std::int64_t i = 0; i < 1000; ++i) {
      int votes = 0;
      for (const auto& view : views) votes += view.trit(i);
      ASSERT_EQ(out.view().trit(i), (votes > 0) - (votes < 0)) << experts << " experts, " << i;
    }
    TernaryPlanes other(999);
    EXPECT_THROW(majority(views, other), InvalidArgument);
  }
}

TEST(MergeRefuses, FilesThatDoNotFitTogether) {
  const test::TemporaryDir dir;
  const auto packed = [&](const char* name, std::uint64_t seed, std::int64_t rows) {
    pack(open_adapter_dir(test::write_lora(dir / concat(name, ".in"), seed, rows)), dir / name,
         {.density = 0.2});
    return PackedFile(dir / name);
  };
  const PackedFile a = packed("a", 81, 24), b = packed("b", 82, 24), c = packed("c", 83, 25);
  const auto merge = [&](const std::vector<const PackedFile*>& files, std::vector<float> weights) {
    try {
      merge_packed(MergeMethod::kAverage, files, std::move(weights), dir / "m", false);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(merge({&a, &c}, {}), HasSubstr("name or shape"));
  EXPECT_THAT(merge({}, {}), HasSubstr("at least one"));
  EXPECT_THAT(merge({&a, &b}, {1}), HasSubstr("as many weights"));
  EXPECT_THAT(merge({&a, &b}, {1, NAN}), HasSubstr("finite"));
  EXPECT_FALSE(std::filesystem::exists(dir / "m"));
  EXPECT_EQ(merge({&a, &b}, {}), "");
  EXPECT_THROW(merge_packed(MergeMethod::kAverage, {&a, &b}, {}, dir / "m", false), FileError);
  // A merged file can be merged again; a ternary majority of it is not possible.
  const PackedFile m(dir / "m");
  merge_packed(MergeMethod::kAverage, {&m, &a}, {}, dir / "again", false);
  EXPECT_THROW(merge_packed(MergeMethod::kMajority, {&m, &a}, {}, dir / "no", false),
               InvalidArgument);
  EXPECT_THROW(parse_merge_method("tie"), InvalidArgument);
}

// Two adapters of one change each; the second has other settings.
class MergeScales : public testing::Test {
 protected:
  PackedFile packed(const std::string& name, const std::string& config, std::uint64_t seed,
                    Granularity granularity = Granularity::kGroup) {
    test::write_lora(dir_ / (name + ".in"), seed);
    test::write_text(dir_ / (name + ".in") / kAdapterConfigName, config);
    pack(open_adapter_dir(dir_ / (name + ".in")), dir_ / name,
         {.density = 0.5, .granularity = granularity, .overwrite = true});
    return PackedFile(dir_ / name);
  }
  std::vector<float> values(const PackedFile& file, const std::string& factor) {
    unpack_to_dir(file, dir_ / "out", true);
    return test::read_floats(SafetensorsFile(dir_ / "out" / kAdapterModelName),
                             "base_model.model.q.lora_" + factor + ".weight");
  }
  std::string error(const PackedFile& a, const PackedFile& b,
                    MergeMethod method = MergeMethod::kAverage) {
    try {
      merge_packed(method, {&a, &b}, {}, dir_ / "m", true);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  }
  static std::string lora(double alpha, const std::string& more = "") {
    return concat(R"({"peft_type": "LORA", "r": 4, "lora_alpha": )", alpha, more, "}");
  }
  test::TemporaryDir dir_;
};

TEST_F(MergeScales, FactorsBTakeTheRatioOfTheScales) {
  const PackedFile a = packed("a", lora(8), 91), b = packed("b", lora(64), 92);
  const PackedFile root = packed("root", lora(8, R"(, "use_rslora": true)"), 92);
  const auto a_of_b = values(b, "A"), b_of_b = values(b, "B");
  for (const auto& [file, ratio] : {std::pair{&b, 8.0f}, {&root, 2.0f}}) {
    merge_packed(MergeMethod::kTaskArithmetic, {&a, file}, {0, 1}, dir_ / "m", true);
    const PackedFile merged(dir_ / "m");
    EXPECT_EQ(*merged.manifest().adapter_config, lora(8));
    EXPECT_EQ(values(merged, "A"), a_of_b);
    const auto found = values(merged, "B");
    for (std::size_t i = 0; i < found.size(); ++i) ASSERT_EQ(found[i], ratio * b_of_b[i]);
  }
  // A majority has one scale for each part.
  ASSERT_EQ(error(a, b, MergeMethod::kMajority), "");
  const PackedFile merged(dir_ / "m");
  const auto scale = [](const PackedFile& file, std::size_t part) {
    return file.manifest().parts[part].scale;
  };
  EXPECT_EQ(scale(merged, 0), (scale(a, 0) + scale(b, 0)) / 2);
  EXPECT_EQ(scale(merged, 1), (scale(a, 1) + 8 * scale(b, 1)) / 2);
}

TEST_F(MergeScales, WhatCannotBeMatchedIsRefused) {
  const PackedFile a = packed("a", lora(8, R"(, "base_model_name_or_path": "x")"), 93);
  const auto refusal = [&](const std::string& config) { return error(a, packed("b", config, 94)); };
  EXPECT_EQ(refusal(lora(8)), "");
  EXPECT_THAT(refusal(lora(8, R"(, "base_model_name_or_path": "y")")),
              HasSubstr("base models 'y' and 'x'"));
  EXPECT_THAT(refusal(lora(8, R"(, "use_dora": true)")), HasSubstr("use_dora"));
  EXPECT_THAT(refusal(lora(9, R"(, "alpha_pattern": {"q": 4})")), HasSubstr("patterns"));
  const PackedFile one = packed("one", lora(8), 95, Granularity::kGlobal);
  const PackedFile two = packed("two", lora(4), 96, Granularity::kGlobal);
  EXPECT_EQ(error(one, two), "");
  EXPECT_THAT(error(one, two, MergeMethod::kMajority), HasSubstr("granularity group or tensor"));
}

}  // namespace
}  // namespace thinwire::peft
