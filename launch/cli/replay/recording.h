// Recorded gradients of all ranks, see comm/average/gradient_recorder.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "thinwire/compressors/peft/safetensors.h"

namespace thinwire::launch {

struct RecordedLayer {
  std::string name;
  std::vector<std::int64_t> shape;
  std::int64_t numel = 0;
};

// Immutable, safe to read from several threads.
class Recording {
 public:
  // Reads PATH.0, PATH.1, …, or PATH itself where that is a file, of any number of ranks. Throws
  // FileError where there are none, for tensors that are not STEP/RANK/LAYER of float32, where a
  // layer of some rank and step is missing, and for files of jobs of different sizes.
  explicit Recording(const std::filesystem::path& path);

  int world() const { return world_; }
  std::int64_t steps() const { return static_cast<std::int64_t>(steps_.size()); }
  const std::vector<RecordedLayer>& layers() const { return layers_; }
  std::int64_t numel() const { return numel_; }
  // All layers in a row, of the n-th recorded step.
  void read(std::int64_t step, int rank, std::span<float> into) const;

 private:
  std::span<const std::byte> bytes(const std::string& name) const;

  std::vector<peft::SafetensorsFile> files_;
  std::vector<std::int64_t> steps_;  // as they were numbered
  std::vector<RecordedLayer> layers_;
  std::int64_t numel_ = 0;
  int world_ = 0;
};

}  // namespace thinwire::launch
