// Packed deltas that are valid but for what the fuzzer changes.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "thinwire/compressors/peft/container.h"
#include "thinwire/tests/fuzz/fuzz_target.h"

using namespace thinwire;  // NOLINT(google-build-using-namespace): a program of one file

std::vector<fuzz::Input> fuzz::seeds() {
  std::vector<Input> all;
  const auto path =
      std::filesystem::temp_directory_path() / concat("thinwire-fuzz-", ::getpid(), ".safetensors");
  // Every second entry of rows of 50 is a column: coded by row and column, a file of version 2.
  const std::vector<std::int64_t> vector = {3000}, matrix = {60, 50};
  for (const auto& [every, shape] :
       {std::pair{2, vector}, {9, vector}, {200, vector}, {2, matrix}}) {
    const std::int64_t numel = 3000;
    peft::TernaryPlanes planes(numel);
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < numel; i += every, ++kept) planes.set(i, i % 3 == 0 ? -1 : 1);
    peft::Manifest manifest;
    manifest.numel = numel;
    manifest.tensors.push_back({.info = {"a", "F32", shape}});
    manifest.parts.push_back({.name = "", .scale = 0.5f, .numel = numel, .kept = kept});
    peft::write_packed(
        path, manifest, planes.view(), [](std::size_t) { return std::span<const std::byte>(); },
        /*overwrite=*/true);
    std::ifstream in(path, std::ios::binary);
    all.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  std::filesystem::remove(path);
  return all;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = fuzz::bytes_of(data, size);
  for (const auto check : {peft::PackedFile::Check::kAll, peft::PackedFile::Check::kHeader}) {
    fuzz::expect_taken_or_refused([&] {
      const peft::PackedFile file({bytes.begin(), bytes.end()}, "input", check);
      file.planes();
    });
  }
  return 0;
}
