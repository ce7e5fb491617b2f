// What the environment says about the fake device.
#pragma once

#include <chrono>
#include <cstdint>

#include "thinwire/tests/support/fake_gpu/fake_gpu.h"

namespace thinwire::fake_gpu {

// FAKE_GPU_DEVICES, 4 where it is not set.
int device_count();
inline constexpr std::size_t kDeviceBytes = std::size_t{4} << 30;

Schedule schedule();
// How much later than at once the next task of a stream is due. FAKE_GPU_SEED draws where the
// schedule is random.
std::chrono::microseconds delay(bool is_default_stream);

}  // namespace thinwire::fake_gpu
