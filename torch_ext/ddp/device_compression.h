// Whether a compression has kernels for gradients in GPU memory.
#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/torch_ext/compression/compression.h"
#include "thinwire/torch_ext/compression/compression_options.h"

namespace thinwire {

// Throws InvalidArgument where gradients on this device cannot be averaged by the plan over this
// group, or by what its policy may choose; the message says what can. Nothing on a CPU.
void check_device_averages(at::Device device, const CompressionPlan& plan,
                           const CompressionOptions& options, c10d::ProcessGroup& group);

}  // namespace thinwire
