#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "peft_fixtures.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/container.h"
#include "thinwire/tests/support/sanitized.h"

namespace thinwire::peft {
namespace {

using ::testing::HasSubstr;

// One ternary vector of `planes` as tensor "t", and a small tensor "v" that is kept by value.
Manifest manifest_of(const TernaryPlanes& planes) {
  const std::int64_t kept = count_nonzero(planes.view());
  Manifest manifest;
  manifest.numel = planes.numel();
  manifest.density = 0.1;
  manifest.parts.push_back({"all", 0.25f, planes.numel(), kept, 1.0, 0.5});
  manifest.tensors.push_back({{"t", "F32", {planes.numel()}}});
  manifest.tensors.push_back({{"v", "I16", {3}}, Storage::kValue});
  manifest.source_metadata = {{"format", "pt"}};
  manifest.adapter_config = "{\"peft_type\": \"LORA\"}";
  return manifest;
}

std::string write(const std::filesystem::path& path, const TernaryPlanes& planes,
                  const Manifest& manifest) {
  const auto bytes = std::as_bytes(std::span("abcdef", 6));
  return write_packed(
      path, manifest, planes.view(), [&](std::size_t) { return bytes; }, true);
}

std::string error_of(const std::filesystem::path& path,
                     PackedFile::Check check = PackedFile::Check::kAll) {
  try {
    const PackedFile file(path, check);
    const TernaryPlanes planes = file.planes();
  } catch (const FileError& error) {
    return error.what();
  }
  return "";
}

TEST(Container, RestoresWhatWasWritten) {
  const test::TemporaryDir dir;
  for (const std::int64_t numel : {0L, 1L, 1000L, 2 * kBlockEntries + 5}) {
    const auto planes = test::random_planes(numel, 0.1, 31);
    const Manifest manifest = manifest_of(planes);
    const std::string id = write(dir / "f", planes, manifest);
    const PackedFile file(dir / "f");
    EXPECT_EQ(file.manifest().id, id);
    EXPECT_EQ(file.manifest().numel, numel);
    EXPECT_EQ(file.manifest().parts[0].scale, 0.25f);
    EXPECT_EQ(file.manifest().adapter_config, manifest.adapter_config);
    EXPECT_EQ(file.manifest().source_metadata, manifest.source_metadata);
    EXPECT_EQ(file.blocks(), block_count(numel));
    EXPECT_EQ(std::memcmp(file.dense_bytes(1).data(), "abcdef", 6), 0);
    const auto found = file.planes();
    EXPECT_TRUE(std::ranges::equal(found.mask(), planes.mask()));
    EXPECT_TRUE(std::ranges::equal(found.sign(), planes.sign()));
    EXPECT_EQ(packed_bytes(manifest, planes.view()), std::filesystem::file_size(dir / "f"));
  }
}

TEST(Container, IsReadFromMemoryAsFromAFile) {
  const test::TemporaryDir dir;
  const auto planes = test::random_planes(5000, 0.1, 32);
  write(dir / "f", planes, manifest_of(planes));
  const PackedFile file(dir / "f");
  const SafetensorsFile raw(dir / "f");
  const auto bytes = raw.file_bytes();
  PackedFile first(std::vector(bytes.begin(), bytes.end()), "expert");
  const PackedFile moved = std::move(first);  // spans must follow the bytes
  EXPECT_EQ(moved.manifest().id, file.manifest().id);
  EXPECT_TRUE(std::ranges::equal(moved.planes().mask(), planes.mask()));
  EXPECT_TRUE(std::ranges::equal(moved.planes().sign(), planes.sign()));
  auto damaged = std::vector(bytes.begin(), bytes.end());
  damaged.back() ^= std::byte{1};
  try {
    const PackedFile refused(std::move(damaged), "expert");
    FAIL();
  } catch (const FileError& error) {
    EXPECT_THAT(error.what(), HasSubstr("expert: the checksum"));
  }
  EXPECT_THROW(PackedFile({std::byte{7}}, "expert"), FileError);
}

TEST(Container, IsSmallerThanFloat16ByNearlyTheBound) {
  const test::TemporaryDir dir;
  const std::int64_t numel = 1 << 22;
  write(dir / "f", test::random_planes(numel, 0.05, 32),
        manifest_of(test::random_planes(numel, 0.05, 32)));
  EXPECT_GT(
      2.0 * static_cast<double>(numel) / static_cast<double>(std::filesystem::file_size(dir / "f")),
      46.5);
}

TEST(Container, IdFollowsTheContent) {
  const test::TemporaryDir dir;
  auto planes = test::random_planes(5000, 0.1, 33);
  Manifest manifest = manifest_of(planes);
  const std::string id = write(dir / "f", planes, manifest);
  EXPECT_EQ(write(dir / "g", planes, manifest), id);
  EXPECT_EQ(test::read_text(dir / "f"), test::read_text(dir / "g"));
  planes.set(17, -planes.view().trit(17) != 0 ? -planes.view().trit(17) : 1);
  manifest = manifest_of(planes);
  EXPECT_NE(write(dir / "g", planes, manifest), id);
  manifest.parent = "x";
  EXPECT_NE(write(dir / "h", planes, manifest), write(dir / "g", planes, manifest_of(planes)));
}

TEST(Container, ReadsAnyRangeOfATensorByBlocks) {
  const test::TemporaryDir dir;
  const std::int64_t numel = 3 * kBlockEntries + 100;
  const auto planes = test::random_planes(numel, 0.2, 34);
  Manifest manifest = manifest_of(planes);
  // Two tensors share the vector; the boundary is inside a block and inside a word.
  const std::int64_t first = kBlockEntries + 77;
  manifest.parts = {{"a", 0.5f, first}, {"b", 2.0f, numel - first}};
  manifest.parts[0].kept = count_nonzero(extract(planes.view(), 0, first).view());
  manifest.parts[1].kept = count_nonzero(planes.view()) - manifest.parts[0].kept;
  manifest.tensors[0] = {{"t", "F32", {first}}};
  manifest.tensors.insert(manifest.tensors.begin() + 1,
                          PackedTensor{{"u", "F32", {numel - first}}});
  manifest.tensors[1].part = 1;
  manifest.tensors[1].offset = first;
  write(dir / "f", planes, manifest);

  const PackedFile file(dir / "f", PackedFile::Check::kHeader);
  DeltaReader reader(file);
  for (const auto& [tensor, begin, count] : {std::tuple{0, 0L, 10L},
                                             {1, 0L, 200L},
                                             {1, kBlockEntries - 100, kBlockEntries + 50},
                                             {0, kBlockEntries - 1, 78L},
                                             {1, numel - first - 1, 1L},
                                             {0, 5L, 0L}}) {
    std::vector<float> values(static_cast<std::size_t>(count));
    reader.read(static_cast<std::size_t>(tensor), begin, values);
    for (std::int64_t i = 0; i < count; ++i)
      ASSERT_EQ(values[static_cast<std::size_t>(i)],
                (tensor == 0 ? 0.5f : 2.0f) *
                    static_cast<float>(planes.view().trit((tensor == 0 ? 0 : first) + begin + i)));
  }
  std::vector<float> two(2);
  EXPECT_THROW(reader.read(0, first - 1, two), InvalidArgument);
  EXPECT_THROW(reader.read(2, 0, two), InvalidArgument) << "stored by value";
}

TEST(Container, EveryFlippedByteAndEveryTruncationIsAnError) {
  const test::TemporaryDir dir;
  const auto planes = test::random_planes(900, 0.1, 35);
  write(dir / "f", planes, manifest_of(planes));
  const std::string good = test::read_text(dir / "f");
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    test::write_text(dir / "g", bad);
    ASSERT_THAT(error_of(dir / "g"), HasSubstr((dir / "g").string())) << "byte " << i;
    // Without the checksum of everything each byte of header, directory, blocks and seal counts
    // all the same: only what is kept by value, and the checksum itself, may pass.
    if (i % 3 == 0) {
      const std::string error = error_of(dir / "g", PackedFile::Check::kHeader);
      ASSERT_TRUE(!error.empty() || i + 14 >= good.size()) << "byte " << i;
    }
    if (i % 7 == 0 || i < 16) {
      test::write_text(dir / "g", good.substr(0, i));
      ASSERT_NE(error_of(dir / "g"), "") << "cut at " << i;
    }
  }
  test::write_text(dir / "g", good + '\0');
  EXPECT_NE(error_of(dir / "g"), "");
}

// Replaces text in the file's JSON by text of equal length and mends both checksums, as someone
// with bad intentions would.
void forge(const std::filesystem::path& from, const std::filesystem::path& to,
           const std::string& before, const std::string& after, std::size_t blocks = 1) {
  ASSERT_EQ(before.size(), after.size());
  std::string file = test::read_text(from);
  const std::size_t at = file.find(before);
  ASSERT_NE(at, std::string::npos) << before;
  file.replace(at, before.size(), after);
  std::uint64_t header;
  std::memcpy(&header, file.data(), 8);
  const std::size_t directory = 8 * blocks;
  const auto bytes = [&](std::size_t n) { return std::as_bytes(std::span(file).first(n)); };
  const std::uint32_t head = crc32c(bytes(8 + header + directory));
  std::memcpy(file.data() + file.size() - 8, &head, 4);
  const std::uint32_t all = crc32c(bytes(file.size() - 4));
  std::memcpy(file.data() + file.size() - 4, &all, 4);
  test::write_text(to, file);
}

TEST(Container, ForgedManifestsAreRefused) {
  const test::TemporaryDir dir;
  const auto planes = test::random_planes(3000, 0.1, 36);
  Manifest manifest = manifest_of(planes);
  manifest.parts[0].kept = count_nonzero(planes.view());
  write(dir / "f", planes, manifest);
  forge(dir / "f", dir / "same", "3000", "3000");
  EXPECT_EQ(error_of(dir / "same"), "") << "forge() itself must not break the file";
  const std::string kept = std::to_string(manifest.parts[0].kept);
  const struct {
    std::string before, after;
    const char* complaint;
  } cases[] = {
      {R"(\"numel\":3000,\"block)", R"(\"numel\":9000,\"block)", "3000 entries, its vector 9000"},
      {R"(\"numel\":3000,\"kept)", R"(\"numel\":3001,\"kept)", "claims 3001"},
      {R"(\"kept\":)" + kept, R"(\"kept\":)" + std::string(kept.size(), '9'), "set entries"},
      {R"(\"block_entries\":262144)", R"(\"block_entries\":262145)", "do not have 262144"},
      {R"(\"scale\":0.25)", R"(\"scale\":-0.2)", "has scale"},
      {R"(\"shape\":[3000])", R"(\"shape\":[9999])", "pass the 3000"},
      {R"(\"storage\":\"ternary\")", R"(\"storage\":\"quinary\")", "unknown storage"},
      {R"(\"storage\":\"value\")", R"(\"storage\":\"delta\")", "dtype I16"},
      {R"(\"part\":0)", R"(\"part\":1)", "no such part"},
      {R"(\"name\":\"t\",)", R"(\"name\":\"w\",)", "order of their names"},
      {R"(\"dtype\":\"I16\")", R"(\"dtype\":\"U16\")", "missing"},
      {R"(\"parent\":)", R"(\"Parent\":)", "'parent' is missing"},
      {R"("format":"compeft")", R"("format":"compefT")", "not a ComPEFT file"},
      {R"("version":"1")", R"("version":"3")", "version is '3'"},
  };
  for (const auto& c : cases) {
    forge(dir / "f", dir / "g", c.before, c.after);
    EXPECT_THAT(error_of(dir / "g"), HasSubstr(c.complaint)) << c.after;
  }
}

// Rows of even numbers are three times as dense as others; cut into tensors as a LoRA adapter's
// are.
TEST(Container, ContextsMakeItAFileOfVersionTwo) {
  const test::TemporaryDir dir;
  Manifest manifest;
  const std::vector<std::vector<std::int64_t>> shapes = {
      {16, 4096}, {9, 7}, {3000, 16}, {64, 4096}, {0, 5}, {5}, {70, 20, 3, 3}};
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const TensorInfo info{concat("t", i), "F32", shapes[i]};
    manifest.tensors.push_back({info});
    manifest.numel += info.numel();
  }
  TernaryPlanes planes(manifest.numel);
  const auto dense = test::random_planes(manifest.numel, 0.12, 51);
  const auto sparse = test::random_planes(manifest.numel, 0.01, 52);
  std::int64_t at = 0;
  for (const auto& shape : shapes) {
    const std::int64_t numel = TensorInfo{"", "F32", shape}.numel();
    for (std::int64_t i = 0; i < numel; ++i, ++at) {
      const std::int64_t row = shape.size() > 1 ? i / (numel / shape[0]) : 0;
      planes.set(at, (row % 2 == 0 ? dense : sparse).view().trit(at));
    }
  }
  manifest.parts.push_back({"all", 0.25f, manifest.numel, count_nonzero(planes.view()), 1.0, 0.5});
  write(dir / "f", planes, manifest);
  const PackedFile file(dir / "f");
  EXPECT_EQ(SafetensorsFile(dir / "f").metadata().at("version"), "2");
  EXPECT_EQ(file.blocks(), 2);
  EXPECT_EQ(file.block_mode(0), BlockMode::kContexts);
  EXPECT_EQ(packed_bytes(manifest, planes.view()), std::filesystem::file_size(dir / "f"));
  const auto found = file.planes();
  EXPECT_TRUE(std::ranges::equal(found.mask(), planes.mask()));
  EXPECT_TRUE(std::ranges::equal(found.sign(), planes.sign()));

  forge(dir / "f", dir / "old", R"("version":"2")", R"("version":"1")", 2);
  EXPECT_THAT(error_of(dir / "old"), HasSubstr("its mode is unknown"));

  // Others stay files of version 1, which older readers take.
  const auto even = test::random_planes(5000, 0.1, 53);
  write(dir / "g", even, manifest_of(even));
  EXPECT_EQ(SafetensorsFile(dir / "g").metadata().at("version"), "1");
}

TEST(Container, EmptyBlocksTakeNoMemory) {
  const test::TemporaryDir dir;
  // 4 Gi entries in 16384 blocks: planes of 1 GiB from a file of a quarter of a megabyte. The one
  // entry that is set is in the last block.
  const std::int64_t numel = std::int64_t{1} << 32;
  TernaryPlanes planes(numel);
  planes.set(numel - 1, -1);
  write(dir / "f", planes, manifest_of(planes));
  EXPECT_LT(std::filesystem::file_size(dir / "f"), 300'000u);
  const auto resident = [] {
    std::size_t total, pages;
    std::ifstream("/proc/self/statm") >> total >> pages;
    return pages * 4096;
  };
  const std::size_t before = resident();
  const PackedFile file(dir / "f");
  const TernaryPlanes found = file.planes();
  EXPECT_EQ(found.view().trit(numel - 1), -1);
  if (!THINWIRE_SANITIZED) {
    EXPECT_LT(resident() - before, 256u << 20);
  }
}

TEST(Container, RefusesReservedNamesAndExistingFiles) {
  const test::TemporaryDir dir;
  const auto planes = test::random_planes(10, 0.5, 37);
  Manifest manifest = manifest_of(planes);
  write(dir / "f", planes, manifest);
  EXPECT_THROW(write_packed(dir / "f", manifest, planes.view(), {}, false), FileError);
  manifest.tensors[1].info.name = "compeft.blocks";
  EXPECT_THROW(write(dir / "g", planes, manifest), InvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(dir / "g"));
}

}  // namespace
}  // namespace thinwire::peft
