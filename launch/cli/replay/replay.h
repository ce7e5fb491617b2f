// Averaging recorded gradients once more.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "thinwire/launch/cli/replay/recording.h"

namespace thinwire::launch {

struct ReplayedError {
  double relative = 0;     // √(Σ ‖out − exact‖² / Σ ‖exact‖²) over the steps
  double of_the_sums = 0;  // ‖Σ out − Σ exact‖ / ‖Σ exact‖: what feedback makes good
};

struct ReplayedLayer {
  std::string name;
  std::int64_t numel = 0;
  std::string spec;  // what the layer was averaged with
  ReplayedError error = {};
};

// The numbers of a row are over the layers that training compresses, whatever the codec, so that
// rows can be compared, "none" and lgreco's among them: those that min_numel and compress_1d do not
// rule out, or all where there is no other.
struct ReplayRow {
  std::string spec;
  std::string strategy;
  // Bits an element that a rank's own gradient takes on the way to the owners, and that the mean
  // takes on the way back; what one rank of W sends is (W − 1) / W of either. Frames included.
  // Where there are no owners nothing comes back, and the way up counts every rank that it goes to.
  // One rank sends nothing.
  double bits_up = 0, bits_down = 0;
  ReplayedError error = {};
  double seconds_per_element = 0;  // of the averager's thread on one rank, least of the steps
  std::vector<ReplayedLayer> layers = {};
};

struct ReplayOptions {
  std::string strategy = "auto";
  std::int64_t min_numel = 1024;
  bool compress_1d = false;
  // Recorded steps that are averaged but not looked at, until residuals and steps have settled.
  std::int64_t skip = 0;
};

// Runs all ranks as threads of this process, with the averaging code of training. Steps whose mean
// is not finite change nothing of the state, as in training, and are left out of the errors.
//
// lgreco(...) sees the recorded steps once before, as often as it takes to its first plan, whose
// `warmup` and `first` are 0 here: training was under way when the steps were recorded.
//
// Throws InvalidArgument as make_plan() and for strategies that a codec cannot take, and where
// `skip` or values that are not finite leave no step.
ReplayRow replay(const Recording& recording, const std::string& spec, const ReplayOptions& options);

}  // namespace thinwire::launch
