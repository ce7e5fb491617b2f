// Gradients as training brings them, on disk, to be averaged again with other codecs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include <ATen/core/Tensor.h>

#include "thinwire/comm/average/bucket_averager.h"

namespace thinwire::comm {

// Writes what one rank hands to the averager in `steps` training steps from `first` on to
// PATH.RANK, a safetensors file with tensors STEP/RANK/LAYER of the layers' shapes, as they come:
// before residuals are added. Kept in memory until the last of the steps is over. `thinwire replay
// PATH` reads the files of all ranks. Not thread-safe.
class GradientRecorder {
 public:
  GradientRecorder(std::filesystem::path path, int rank, int world, std::int64_t first,
                   std::int64_t steps);
  // Writes what there is, where training ended before; a failure is logged.
  ~GradientRecorder();
  GradientRecorder(const GradientRecorder&) = delete;
  GradientRecorder& operator=(const GradientRecorder&) = delete;

  // Throws InvalidArgument where there is no such step.
  static void check_steps(std::int64_t first, std::int64_t steps);

  // Throws FileError where the disk refuses.
  void record(const Bucket& bucket, std::int64_t step);

 private:
  void write();

  const std::filesystem::path path_;
  const int rank_, world_;
  const std::int64_t first_, steps_;
  std::map<std::string, at::Tensor> tensors_;
  bool written_ = false;
};

}  // namespace thinwire::comm
