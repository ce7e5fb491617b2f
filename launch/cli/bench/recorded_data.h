// What `thinwire bench all_reduce --data` averages: recorded gradients, as often as fills a bucket.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "thinwire/launch/cli/replay/recording.h"

namespace thinwire::launch {

// A model that consists of copies of the recorded one. Each copy brings another recorded step, so
// that copies differ, and in every run the step after its last one, so that what follows the
// gradients (residuals, steps, bases) finds what it would in training. After the last recorded step
// comes the first. Immutable.
class RecordedData {
 public:
  // As many copies as fit into `bytes` of float32, at least one. `recording` must outlive this.
  RecordedData(const Recording& recording, std::int64_t bytes);

  std::int64_t numel() const { return copies_ * recording_.numel(); }
  std::int64_t copies() const { return copies_; }
  // "a.weight", …, then those of the second copy, "a.weight (2)", …
  const std::vector<RecordedLayer>& layers() const { return layers_; }

  // What a rank brings to a run, all layers in a row; runs are counted from 0.
  void read(std::int64_t run, int rank, std::span<float> into) const;
  // The mean over ranks 0 … world − 1, in double precision.
  std::vector<double> exact_mean(std::int64_t run, int world) const;

 private:
  const Recording& recording_;
  const std::int64_t copies_;
  std::vector<RecordedLayer> layers_;
};

// What must be equal on all ranks of a job of `world` ranks. Throws InvalidArgument for a recording
// of fewer ranks.
std::string describe(const Recording& recording, int world);

}  // namespace thinwire::launch
