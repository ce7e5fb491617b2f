// Inputs that the tests of compressors/peft share.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numbers>
#include <string>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/common/philox.h"
#include "thinwire/compressors/peft/safetensors.h"
#include "thinwire/compressors/peft/ternary_planes.h"
#include "thinwire/tests/common/remove_tree.h"

namespace thinwire::peft::test {

// Every entry is set with probability `density`, its sign is a fair coin.
inline TernaryPlanes random_planes(std::int64_t numel, double density, std::uint64_t seed) {
  TernaryPlanes planes(numel);
  const auto stream = PhiloxStream::of({.seed = seed});
  const auto limit = static_cast<std::uint32_t>(density * 0x1p31);
  for (std::int64_t i = 0; i < numel; i += 4) {
    const auto words = stream.block(static_cast<std::uint64_t>(i / 4));
    for (std::int64_t j = 0; j < 4 && i + j < numel; ++j) {
      const std::uint32_t word = words[static_cast<std::size_t>(j)];
      if (word >> 1 < limit) planes.set(i + j, (word & 1) != 0 ? -1 : 1);
    }
  }
  return planes;
}

// Standard normal numbers by Box and Muller's transform.
inline std::vector<float> normal_values(std::size_t n, std::uint64_t seed) {
  const auto stream = PhiloxStream::of({.seed = seed});
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) {
    const double u = (stream.word(2 * i) + 0.5) * 0x1p-32;
    const double v = stream.word(2 * i + 1) * 0x1p-32;
    values[i] =
        static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v));
  }
  return values;
}

// A folder that is removed with everything in it.
class TemporaryDir {
 public:
  TemporaryDir() {
    std::string name = (std::filesystem::temp_directory_path() / "thinwire-peft-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw FileError("cannot create " + name);
    path_ = name;
  }
  ~TemporaryDir() { remove_tree(path_); }
  TemporaryDir(const TemporaryDir&) = delete;
  TemporaryDir& operator=(const TemporaryDir&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct FloatTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

// A file of float32 tensors.
inline void write_tensors(const std::filesystem::path& path,
                          const std::vector<FloatTensor>& tensors) {
  std::vector<TensorInfo> infos;
  for (const auto& tensor : tensors) infos.push_back({tensor.name, "F32", tensor.shape});
  SafetensorsWriter writer(path, infos, {{"format", "pt"}}, true);
  for (const auto& tensor : tensors) writer.write(std::as_bytes(std::span(tensor.values)));
  writer.commit();
}

inline std::vector<float> read_floats(const SafetensorsFile& file, const std::string& name) {
  const auto bytes = file.bytes(name);
  std::vector<float> values(bytes.size() / 4);
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

inline constexpr const char* kLoraConfig =
    "{\n  \"peft_type\": \"LORA\",\n  \"r\": 4,\n  \"lora_alpha\": 8,\n"
    "  \"target_modules\": [\"q\"],\n  \"key_of_a_later_release\": {\"kept\": [1, 2]}\n}\n";

// A LoRA directory with one pair of factors and a tensor that has no known base.
inline std::filesystem::path write_lora(const std::filesystem::path& directory, std::uint64_t seed,
                                        std::int64_t rows = 24) {
  std::filesystem::create_directories(directory);
  write_text(directory / "adapter_config.json", kLoraConfig);
  const auto r = static_cast<std::size_t>(rows);
  write_tensors(directory / "adapter_model.safetensors",
                {{"base_model.model.q.lora_A.weight", {4, rows}, normal_values(4 * r, seed)},
                 {"base_model.model.q.lora_B.weight", {rows, 4}, normal_values(4 * r, seed + 1)},
                 {"base_model.model.score.weight", {2, 3}, normal_values(6, 77)}});
  return directory;
}

}  // namespace thinwire::peft::test
