// Measuring a link model: timed collectives, ping-pongs and codecs.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/link/link_model.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire::comm {

struct ProbeOptions {
  int warmup = 1;   // calls of every size that are not counted
  int repeats = 5;  // that are
  // Sizes grow by factors of four, from `smallest` bytes of tensor, until a call takes this long or
  // `largest` is reached.
  std::int64_t smallest = 1024;
  std::int64_t largest = std::int64_t{16} << 20;
  double enough_seconds = 0.05;
  bool pairs = true;  // W (W − 1) directions, one after another
  // Called on every rank before each part, with "all_reduce", ..., "ranks 0 and 3".
  std::function<void(const std::string&)> progress = {};
};

// Measures the collectives of `group` and its pairs; float32 and byte tensors of the host. A time
// is the longest of all ranks. Collective; every rank gets the same numbers. Not thread-safe: the
// group must have nothing else to do. Throws InvalidArgument for a group of one rank or whose
// backend takes tensors of a GPU only, CommError when a rank is gone.
BackendLink probe_backend(c10d::ProcessGroup& group, const ProbeOptions& options = {});

// Measures a codec in this process, on normal float32 values in a matrix of about `bytes`
// (more than caches hold, as gradients are): medians. `before` is called before each of the three
// measurements is repeated.
CodecCost time_codec(const Codec& codec, std::int64_t bytes = std::int64_t{16} << 20,
                     int repeats = 5, const std::function<void()>& before = {});

// The same on all ranks at once; the slowest rank's medians. Collective, for any number of ranks;
// every rank gets the same.
CodecCost probe_codec(c10d::ProcessGroup& group, const Codec& codec,
                      std::int64_t bytes = std::int64_t{16} << 20, int repeats = 5);

// The largest of each value over the ranks. Collective.
void take_largest(c10d::ProcessGroup& group, std::span<double> values);

}  // namespace thinwire::comm
