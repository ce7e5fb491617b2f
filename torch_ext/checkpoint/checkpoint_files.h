// The files of a checkpoint: which steps a folder has, and one rank's part of one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>

#include "thinwire/comm/state/named_tensors.h"

namespace thinwire::detail {

// One rank's file of one step, in a job of `world` ranks.
struct CheckpointFile {
  std::filesystem::path directory;
  std::int64_t step = 0;
  int world = 1;
  int rank = 0;
  // Of the call that saved it, the same on all ranks: files of two runs do not make one step.
  std::int64_t save = 0;

  std::filesystem::path folder() const;
  std::filesystem::path tensors() const;   // rank-R-of-W.safetensors
  std::filesystem::path manifest() const;  // rank-R-of-W.json
};

// Writes the tensors, then the manifest. Throws FileError.
void write_checkpoint_file(const CheckpointFile& file, const NamedTensors& tensors);
// Throws FileError that names the file for one that is missing, of another save, is not as long as
// its manifest says, or has another hash.
NamedTensors read_checkpoint_file(const CheckpointFile& file);

// Step -> world -> the ranks whose files are complete, each with its save. Names of other files,
// and manifests that are none, are passed over. Nothing where there is no such directory; FileError
// where there is one that cannot be read.
using CheckpointSteps = std::map<std::int64_t, std::map<int, std::map<int, std::int64_t>>>;
CheckpointSteps checkpoint_steps(const std::filesystem::path& directory);

}  // namespace thinwire::detail
