// One exchange of a bucket in GPU memory.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "thinwire/compressors/kernels/piece_task.h"

namespace thinwire::comm {

// Equal on all ranks, but for what is on the device.
struct DeviceExchange {
  std::uint64_t sequence = 0;  // number of the exchange on this group
  std::uint64_t step = 0;
  std::uint64_t seed = 0;
  std::uint64_t layout = 0;  // hash of what is exchanged, see Frame
  std::uint64_t bucket = 0;  // its number, for messages
  // What has come of all parts of the exchange, and whether this part is the first.
  kernels::ExchangeWords* words = nullptr;
  bool begins = true;
  kernels::DeviceVerdict* verdict = nullptr;  // where the first frame that is refused is noted
  at::Tensor words_memory = {};               // of `words`, 32 bits each

  // What tasks on frames of this exchange have in common.
  kernels::FrameTask frame_task() const {
    kernels::FrameTask frames{};
    frames.layout = layout;
    frames.sequence = sequence;
    frames.bucket = bucket;
    frames.words = words;
    frames.verdict = verdict;
    return frames;
  }
};

}  // namespace thinwire::comm
