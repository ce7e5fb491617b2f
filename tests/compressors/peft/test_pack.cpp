#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>

#include "peft_fixtures.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/float_bits.h"
#include "thinwire/compressors/peft/pack.h"

namespace thinwire::peft {
namespace {

using testing::HasSubstr;

const std::string kA = "base_model.model.q.lora_A.weight";
const std::string kB = "base_model.model.q.lora_B.weight";
const std::string kScore = "base_model.model.score.weight";

// Runs `action` and returns the message of the Exception that it must throw.
template <typename Exception, typename Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const Exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

// scale * trits of the largest int(density n), by sorting; the oracle of pack().
std::vector<float> ternary_of(const std::vector<float>& delta, double density,
                              std::optional<double> alpha) {
  const auto n = delta.size();
  std::vector<std::size_t> order(n);
  for (std::size_t i = 0; i < n; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::fabs(delta[a]) > std::fabs(delta[b]);
  });
  const auto keep = static_cast<std::size_t>(density * static_cast<double>(n));
  double kept = 0, sum = 0, squares = 0;
  for (const float x : delta) sum += x;
  for (const float x : delta) {
    const double centred = x - sum / static_cast<double>(n);
    squares += centred * centred;
  }
  for (std::size_t i = 0; i < keep; ++i) kept += std::fabs(delta[order[i]]);
  const double scale = alpha ? *alpha * std::sqrt(squares / static_cast<double>(n - 1))
                             : kept / static_cast<double>(keep);
  std::vector<float> out(n, 0.0f);
  for (std::size_t i = 0; i < keep; ++i)
    out[order[i]] = static_cast<float>(delta[order[i]] < 0 ? -scale : scale);
  return out;
}

void expect_near(const std::vector<float>& found, const std::vector<float>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i)
    ASSERT_NEAR(found[i], expected[i], 1e-6 * std::fabs(expected[i])) << i;
}

std::vector<float> slice(const std::vector<float>& all, std::size_t begin, std::size_t end) {
  return {all.begin() + static_cast<std::ptrdiff_t>(begin),
          all.begin() + static_cast<std::ptrdiff_t>(end)};
}

TEST(Pack, LoraUnpacksToOneThresholdOverAllFactors) {
  const test::TemporaryDir dir;
  const auto adapter = test::write_lora(dir / "in", 41);
  const DeltaSource source = open_adapter_dir(adapter);
  const auto a = test::read_floats(source.tuned, kA), b = test::read_floats(source.tuned, kB);
  std::vector<float> all = a;
  all.insert(all.end(), b.begin(), b.end());
  for (const std::optional<double> alpha : {std::optional<double>(), std::optional(1.5)}) {
    const PackResult result = pack(
        source, dir / "f",
        {.density = 0.1, .scale = {alpha}, .granularity = Granularity::kGlobal, .overwrite = true});
    EXPECT_EQ(result.kept, 19);  // int(0.1 * 192)
    EXPECT_EQ(result.numel, 192);
    EXPECT_EQ(result.file_bytes, std::filesystem::file_size(dir / "f"));
    unpack_to_dir(PackedFile(dir / "f"), dir / "out", true);
    const SafetensorsFile out(dir / "out" / kAdapterModelName);
    const auto expected = ternary_of(all, 0.1, alpha);
    expect_near(test::read_floats(out, kA), slice(expected, 0, 96));
    expect_near(test::read_floats(out, kB), slice(expected, 96, 192));
    EXPECT_EQ(test::read_floats(out, kScore), test::read_floats(source.tuned, kScore));
    EXPECT_EQ(out.metadata(), source.tuned.metadata());
    EXPECT_EQ(test::read_text(dir / "out" / kAdapterConfigName), test::kLoraConfig);

    double error = 0, norm = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      error += (all[i] - expected[i]) * (all[i] - expected[i]);
      norm += all[i] * all[i];
    }
    EXPECT_NEAR(result.relative_error, std::sqrt(error / norm), 1e-5);
  }
}

TEST(Pack, GranularityDecidesWhoSharesAThreshold) {
  const test::TemporaryDir dir;
  std::filesystem::create_directories(dir / "in");
  test::write_text(dir / "in/adapter_config.json", test::kLoraConfig);
  // Two modules; the B factors are a thousand times smaller, as they are early in training.
  std::vector<test::FloatTensor> tensors;
  for (const char* module : {"q", "v"})
    for (const char* factor : {"A", "B"}) {
      auto values = test::normal_values(200, 42 + tensors.size());
      if (*factor == 'B')
        for (float& value : values) value *= 1e-3f;
      tensors.push_back({concat(module, ".lora_", factor, ".weight"), {20, 10}, values});
    }
  test::write_tensors(dir / "in/adapter_model.safetensors", tensors);
  const DeltaSource source = open_adapter_dir(dir / "in");
  // One threshold for all leaves B without an entry, and B A is all that the adapter does.
  EXPECT_THAT(message_of<InvalidArgument>([&] {
                pack(source, dir / "f", {.density = 0.1, .granularity = Granularity::kGlobal});
              }),
              testing::AllOf(HasSubstr("of the 400 entries of the factors B none is kept"),
                             HasSubstr("use granularity group")));
  EXPECT_FALSE(std::filesystem::exists(dir / "f"));
  for (const auto& [asked, parts, kept_of_b] : {std::tuple{std::optional<Granularity>(), 2u, 20},
                                                {std::optional(Granularity::kGroup), 2u, 20},
                                                {std::optional(Granularity::kTensor), 4u, 20}}) {
    pack(source, dir / "f", {.density = 0.1, .granularity = asked, .overwrite = true});
    const Granularity granularity = asked.value_or(Granularity::kGroup);
    const PackedFile file(dir / "f");
    EXPECT_EQ(file.manifest().parts.size(), parts);
    EXPECT_EQ(file.manifest().granularity, name_of(granularity));
    const auto planes = file.planes();
    EXPECT_EQ(count_nonzero(planes.view()), 80);
    const auto& b = file.manifest().tensors[1];
    EXPECT_NEAR(
        static_cast<double>(count_nonzero(extract(planes.view(), b.offset, b.info.numel()).view())),
        kept_of_b, kept_of_b / 2);
  }
  pack(source, dir / "f", {.density = 0.1, .granularity = Granularity::kTensor, .overwrite = true});
  unpack_to_dir(PackedFile(dir / "f"), dir / "out", false);
  const SafetensorsFile out(dir / "out" / kAdapterModelName);
  for (const auto& tensor : tensors)
    expect_near(test::read_floats(out, tensor.name), ternary_of(tensor.values, 0.1, {}));
}

TEST(Pack, Ia3IsRelativeToOne) {
  const test::TemporaryDir dir;
  std::filesystem::create_directories(dir / "in");
  test::write_text(dir / "in/adapter_config.json", R"({"peft_type": "IA3"})");
  auto values = test::normal_values(100, 43);
  for (float& value : values) value = 1.0f + 0.01f * value;
  test::write_tensors(dir / "in/adapter_model.safetensors", {{"m.ia3_l", {100, 1}, values}});
  pack(open_adapter_dir(dir / "in"), dir / "f", {.density = 0.2});
  unpack_to_dir(PackedFile(dir / "f"), dir / "out", false);
  auto found = test::read_floats(SafetensorsFile(dir / "out" / kAdapterModelName), "m.ia3_l");
  EXPECT_EQ(std::count(found.begin(), found.end(), 1.0f), 80);
  for (float& value : values) value -= 1.0f;
  auto expected = ternary_of(values, 0.2, {});
  for (float& value : expected) value += 1.0f;
  expect_near(found, expected);
}

TEST(Pack, EveryFloatTypeIsRoundedOnce) {
  const test::TemporaryDir dir;
  const auto values = test::normal_values(64, 44);
  for (const auto& [name, dtype] :
       {std::pair{"F16", DType::kFloat16}, {"BF16", DType::kBFloat16}, {"F64", DType::kFloat64}}) {
    std::vector<std::byte> bytes(64 * size_of(dtype));
    for (std::int64_t i = 0; i < 64; ++i)
      detail::store_float(bytes.data(), i, dtype, values[static_cast<std::size_t>(i)]);
    SafetensorsWriter writer(dir / "in", {{"t", name, {64}}, {"u", "I8", {2}}}, {}, true);
    writer.write(bytes);
    writer.write(std::as_bytes(std::span("ab", 2)));
    writer.commit();
    pack(open_tensors(dir / "in", 1), dir / "f", {.density = 0.5, .overwrite = true});
    const PackedFile file(dir / "f");
    unpack_to_dir(file, dir / "out", true);
    const SafetensorsFile out(dir / "out" / kAdapterModelName);
    EXPECT_EQ(out.tensors()[0].dtype, name);
    EXPECT_EQ(std::memcmp(out.bytes("u").data(), "ab", 2), 0);
    const auto planes = file.planes();
    for (std::int64_t i = 0; i < 64; ++i) {
      std::byte expected[8];
      detail::store_float(
          expected, 0, dtype,
          1.0f + file.manifest().parts[0].scale * static_cast<float>(planes.view().trit(i)));
      EXPECT_EQ(std::memcmp(expected, &out.bytes("t")[static_cast<std::size_t>(i) * size_of(dtype)],
                            size_of(dtype)),
                0);
    }
  }
}

TEST(Pack, TargetBytesIsKeptAndUsed) {
  const test::TemporaryDir dir;
  test::write_tensors(dir / "in", {{"t", {40000}, test::normal_values(40000, 45)}});
  const DeltaSource source = open_tensors(dir / "in", 0);
  for (const std::uint64_t target : {2500u, 5000u, 7000u}) {
    const auto result = pack(source, dir / "f", {.target_bytes = target, .overwrite = true});
    EXPECT_LE(result.file_bytes, target);
    EXPECT_GT(result.file_bytes, target - 40);
    EXPECT_LE(result.selections, 8);  // a search by halves takes twenty and more
    EXPECT_EQ(std::filesystem::file_size(dir / "f"), result.file_bytes);
  }
  EXPECT_THAT(message_of<InvalidArgument>(
                  [&] { pack(source, dir / "f", {.target_bytes = 500, .overwrite = true}); }),
              HasSubstr("500 bytes"));
  // Where all magnitudes are alike the signs of all entries are both small and exact.
  std::vector<float> alike = test::normal_values(40000, 46);
  for (float& value : alike) value = value < 0 ? -0.5f : 0.5f;
  test::write_tensors(dir / "signs", {{"t", {40000}, alike}});
  const auto exact =
      pack(open_tensors(dir / "signs", 0), dir / "f", {.target_bytes = 6500, .overwrite = true});
  EXPECT_EQ(exact.kept, 40000);
  EXPECT_EQ(exact.relative_error, 0);
}

TEST(Pack, TargetErrorIsMetByTheLeastDensity) {
  const test::TemporaryDir dir;
  test::write_tensors(dir / "in", {{"t", {20000}, test::normal_values(20000, 47)}});
  const DeltaSource source = open_tensors(dir / "in", 0);
  // The last is met only near 54 %: a mean scale over more entries is worse again.
  for (const double target : {0.9, 0.7, 0.5, 0.439}) {
    const auto result = pack(source, dir / "f", {.target_error = target, .overwrite = true});
    EXPECT_LE(result.relative_error, target);
    EXPECT_EQ(result.selections, 1);
    const auto less =
        pack(source, dir / "f", {.density = result.density - 2e-4, .overwrite = true});
    EXPECT_GT(less.relative_error, target);
  }
  EXPECT_THAT(message_of<InvalidArgument>(
                  [&] { pack(source, dir / "f", {.target_error = 0.3, .overwrite = true}); }),
              HasSubstr("0.3"));
}

// What one reading tells of all densities is what selecting gives.
TEST(Pack, CurvesForetellTheErrorOfEveryDensity) {
  for (const std::size_t n : {500u, 100'000u}) {  // sorted, and counted in bins
    auto values = test::normal_values(n, 49);
    for (std::size_t i = 0; i < n; i += 7) values[i] = i % 2 == 0 ? 0.0f : 0.25f;  // zeros and ties
    DeltaPiece piece;
    piece.tuned = {values.data(), static_cast<std::int64_t>(n), DType::kFloat32};
    const MagnitudeCurve curve({&piece, 1});
    for (const double density : {0.001, 0.01, 0.1, 0.4, 0.8, 1.0})
      for (const ScaleRule& rule : {ScaleRule{}, ScaleRule{1.5}}) {
        TernaryPlanes planes(static_cast<std::int64_t>(n));
        const auto keep = keep_count(density, static_cast<std::int64_t>(n));
        const DeltaStatistics found = select_largest({&piece, 1}, curve, keep, planes);
        const double error =
            found.relative_squared_error(rule.scale(found.mean_kept, found.standard_deviation));
        const double foretold = curve.squared_error(keep, rule) / curve.squared_norm();
        EXPECT_GE(foretold, error - 1e-12) << n << " " << density;
        EXPECT_LE(foretold, error + 1e-4) << n << " " << density;
      }
  }
}

TEST(Pack, TargetsAreMetOverManyParts) {
  const test::TemporaryDir dir;
  std::vector<test::FloatTensor> tensors;
  for (std::size_t i = 0; i < 40; ++i) {
    auto values = test::normal_values(1000 + 50 * i, 60 + i);
    for (float& value : values) value *= static_cast<float>(1 + i);
    tensors.push_back({concat("t", i), {static_cast<std::int64_t>(values.size())}, values});
  }
  test::write_tensors(dir / "in", tensors);
  const DeltaSource source = open_tensors(dir / "in", 0);
  const PackOptions by_error{
      .granularity = Granularity::kTensor, .target_error = 0.6, .overwrite = true};
  const auto result = pack(source, dir / "f", by_error);
  EXPECT_LE(result.relative_error, 0.6);
  EXPECT_GT(result.relative_error, 0.599);
  EXPECT_EQ(result.selections, 1);
  const auto small =
      pack(source, dir / "f",
           {.granularity = Granularity::kTensor, .target_bytes = 20'000, .overwrite = true});
  EXPECT_LE(small.file_bytes, 20'000);
  EXPECT_GT(small.file_bytes, 19'900);
  EXPECT_LE(small.selections, 8);
}

// Linear in the number of tensors: this took minutes where each looked through all others.
// Packs so many tensors, each with a threshold of its own; returns the processor time of it.
double seconds_to_pack(int count) {
  const test::TemporaryDir dir;
  std::vector<test::FloatTensor> tensors;
  const auto values = test::normal_values(64, 50);
  for (int i = 0; i < count; ++i)
    tensors.push_back({concat("layers.", i, ".weight"), {64}, values});
  test::write_tensors(dir / "in", tensors);
  const std::clock_t begin = std::clock();
  const auto result = pack(open_tensors(dir / "in", 0), dir / "f",
                           {.density = 0.25, .granularity = Granularity::kTensor});
  EXPECT_EQ(PackedFile(dir / "f").manifest().parts.size(), count);
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  EXPECT_EQ(result.kept, count * 16);
  return seconds;
}

// Twenty times as many take about twenty times as long, not four hundred times.
TEST(Pack, ManyTensorsOfTheirOwnThreshold) {
  EXPECT_LT(seconds_to_pack(20'000), 80 * seconds_to_pack(1'000));
}

TEST(Pack, SaysWhichModulesKeepNothing) {
  const test::TemporaryDir dir;
  std::filesystem::create_directories(dir / "in");
  test::write_text(dir / "in/adapter_config.json", test::kLoraConfig);
  auto small = test::normal_values(200, 51), large = test::normal_values(200, 52);
  for (float& value : small) value *= 1e-3f;
  test::write_tensors(dir / "in/adapter_model.safetensors", {{"q.lora_A.weight", {20, 10}, large},
                                                             {"q.lora_B.weight", {20, 10}, large},
                                                             {"v.lora_A.weight", {20, 10}, large},
                                                             {"v.lora_B.weight", {20, 10}, small}});
  const auto result = pack(open_adapter_dir(dir / "in"), dir / "f", {.density = 0.1});
  EXPECT_THAT(result.warnings, testing::ElementsAre(testing::AllOf(
                                   HasSubstr("1 factors keep no entry"), HasSubstr("v.lora_B"))));
}

TEST(Pack, RefusesContradictions) {
  const test::TemporaryDir dir;
  const DeltaSource source = open_adapter_dir(test::write_lora(dir / "in", 48));
  EXPECT_THROW(pack(source, dir / "f", {.target_bytes = 1000, .target_error = 0.5}),
               InvalidArgument);
  EXPECT_THROW(pack(source, dir / "f", {.target_error = 1.5}), InvalidArgument);
  EXPECT_THROW(pack(source, dir / "f", {.density = 0}), InvalidArgument);
  EXPECT_THAT(message_of<FileError>([&] { pack(source, "/dev/null", {.overwrite = true}); }),
              HasSubstr("/dev/null is no regular file"));
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_THROW(pack(source, dir / "f", {.parent_id = "x"}), InvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(dir / "f"));
  pack(source, dir / "f", {});
  EXPECT_THROW(pack(source, dir / "f", {}), FileError);
  unpack_to_dir(PackedFile(dir / "f"), dir / "out", false);
  EXPECT_THROW(unpack_to_dir(PackedFile(dir / "f"), dir / "out", false), FileError);
  EXPECT_THAT(pack(source, dir / "f", {.density = 0.2, .scale = {5.0}, .overwrite = true}).warnings,
              testing::ElementsAre(HasSubstr("'A': alpha"), HasSubstr("diverges")));
}

TEST(AdapterDir, RefusesWhatIsNoAdapter) {
  const test::TemporaryDir dir;
  std::filesystem::create_directories(dir / "x");
  const auto open = [&] { open_adapter_dir(dir / "x"); };
  EXPECT_THAT(message_of<FileError>(open), HasSubstr("no adapter_config.json"));
  test::write_text(dir / "x/adapter_config.json", "{}");
  test::write_text(dir / "x/adapter_model.bin", "");
  EXPECT_THAT(message_of<FileError>(open), HasSubstr("pickle"));
  test::write_tensors(dir / "x/adapter_model.safetensors", {});
  EXPECT_THAT(message_of<FileError>(open), HasSubstr("'peft_type' is missing"));
  test::write_text(dir / "x/adapter_config.json", "not JSON");
  EXPECT_THAT(message_of<FileError>(open), HasSubstr("not valid JSON"));
}

TEST(Apply, ChainsOfDeltasRebuildTheTunedWeights) {
  const test::TemporaryDir dir;
  const auto base = test::normal_values(5000, 51), step = test::normal_values(5000, 52);
  auto tuned = base;
  for (std::size_t i = 0; i < tuned.size(); ++i) tuned[i] += 0.01f * step[i];
  const auto save = [&](const char* name, const std::vector<float>& w) {
    test::write_tensors(dir / name, {{"w", {50, 100}, w}});
  };
  save("base", base);
  save("tuned", tuned);
  const auto first = pack(open_pair(dir / "tuned", dir / "base"), dir / "1", {.density = 0.3});
  const PackedFile one(dir / "1");
  apply_packed(dir / "base", {&one}, dir / "after1", false);
  const auto after = test::read_floats(SafetensorsFile(dir / "after1"), "w");
  const auto planes = one.planes();
  for (std::size_t i = 0; i < after.size(); ++i)
    ASSERT_EQ(after[i],
              base[i] + one.manifest().parts[0].scale *
                            static_cast<float>(planes.view().trit(static_cast<std::int64_t>(i))));

  // A second delta, against what the first one gave, brings the rest nearer.
  pack(open_pair(dir / "tuned", dir / "after1"), dir / "2",
       {.density = 0.3, .parent_id = first.id});
  const PackedFile two(dir / "2");
  apply_packed(dir / "base", {&one, &two}, dir / "after2", false);
  apply_packed(dir / "base", {&one, &two}, dir / "after2", true);
  const auto last = test::read_floats(SafetensorsFile(dir / "after2"), "w");
  double error1 = 0, error2 = 0;
  for (std::size_t i = 0; i < last.size(); ++i) {
    error1 += std::pow(after[i] - tuned[i], 2);
    error2 += std::pow(last[i] - tuned[i], 2);
  }
  EXPECT_LT(error2, 0.7 * error1);

  const auto apply = [&](const char* name, std::vector<const PackedFile*> chain) {
    return message_of<FileError>([&] { apply_packed(dir / name, chain, dir / "no", false); });
  };
  EXPECT_THAT(apply("base", {&two}), HasSubstr("gap in the chain"));
  EXPECT_THAT(apply("base", {&one, &one}), HasSubstr("gap in the chain"));
  EXPECT_THAT(apply("tuned", {&one}), HasSubstr("wrong base"));
  test::write_tensors(dir / "other", {{"w", {100, 50}, base}});
  EXPECT_THAT(apply("other", {&one}), HasSubstr("wrong base"));
  test::write_tensors(dir / "more", {{"w", {50, 100}, base}, {"x", {1}, {0}}});
  EXPECT_THAT(apply("more", {&one}), HasSubstr("wrong base"));
  EXPECT_FALSE(std::filesystem::exists(dir / "no"));
  EXPECT_THROW(unpack_to_dir(one, dir / "out", false), InvalidArgument);
}

TEST(Apply, PairsMustHaveTheSameTensors) {
  const test::TemporaryDir dir;
  test::write_tensors(dir / "a", {{"w", {2}, {1, 2}}});
  test::write_tensors(dir / "b", {{"w", {2, 1}, {1, 2}}});
  test::write_tensors(dir / "c", {{"v", {2}, {1, 2}}});
  test::write_tensors(dir / "d", {{"w", {2}, {1, 2}}, {"x", {1}, {0}}});
  for (const char* base : {"b", "c", "d"})
    EXPECT_THAT(message_of<FileError>([&] { open_pair(dir / "a", dir / base); }),
                HasSubstr("tensor '"));
}

}  // namespace
}  // namespace thinwire::peft
