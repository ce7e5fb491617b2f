// What compression makes of each layer's gradient.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/comm/average/plan.h"

namespace thinwire {

struct LayerReport {
  std::string name;
  std::vector<std::int64_t> shape;
  std::string setting;       // "none", "quantize(bits=4, ...)"
  std::int64_t bytes = 0;    // of the gradient, uncompressed
  double payload_bytes = 0;  // of one encoding of it, without frames
  // ‖g − D(C(g))‖ / ‖g‖ of the gradient as it is, without error feedback; of powersgd that of the
  // best approximation of its rank, which its iteration approaches. NaN for a gradient that is
  // zero, not finite or not there.
  double relative_error = 0;
};

// Encodes each gradient once by its setting in the plan: about the work of a step, so for now and
// then. It must be a gradient that has not been averaged yet: the mean has been encoded once, and a
// second time many codecs lose nothing. Gradients are CPU tensors, or undefined. Thread-safe.
std::vector<LayerReport> report_layers(
    const std::vector<std::pair<std::string, at::Tensor>>& gradients, const comm::Plan& plan);

}  // namespace thinwire
