// How long the parts of a training step took, as DistributedDataParallel sees them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thinwire {

// One bucket's way. Seconds after the end of the forward pass, on this rank.
struct BucketProfile {
  std::size_t index = 0;
  std::int64_t bytes = 0;           // of the gradients, uncompressed
  std::vector<std::string> layers;  // in the bucket's order
  double ready = 0;                 // its last gradient was there
  double begun = 0;                 // the communication thread took it
  double finished = 0;              // its mean was there
};

// Medians over the last steps, in seconds; all zero before the first step has ended.
struct StepProfile {
  std::int64_t steps = 0;  // of which these are the medians, at most kProfiledSteps
  double step = 0;         // from one step's last mean to the next one's
  // The program's forward() of DistributedDataParallel; zero where that is PyTorch's, of which only
  // the exchange is known. Then times count from the first bucket.
  double forward = 0;
  double backward = 0;  // from its end to the last gradient: the loss, and the backward pass
  double exposed = 0;   // from the last gradient to the last mean: what did not hide behind them
  // Of the communication thread: what the processor did, and what the clock ran, in a step.
  double compress_cpu = 0, decompress_cpu = 0;
  double compress = 0, exchange = 0, decompress = 0;
  std::vector<BucketProfile> buckets;  // in the order of the last step
};

inline constexpr std::int64_t kProfiledSteps = 64;

}  // namespace thinwire
