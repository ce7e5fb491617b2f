// Bucketed uniform quantisation on the CPU: statistics, rounding and bit packing in one pass over
// each bucket. docs/algorithms.md has the method, quantize_math.h its arithmetic, quantize_layout.h
// the payload's layout, quantize_ref.h the scalar reference that every SIMD target equals bit for
// bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "thinwire/common/dtype.h"
#include "thinwire/common/philox.h"
#include "thinwire/compressors/kernels/quantize_math.h"
#include "thinwire/compressors/view/tensor_view.h"

namespace thinwire::kernels {

struct QuantizeConfig {
  int bits = 4;                // 1 to 8
  std::int64_t bucket = 1024;  // elements that share a scale
  Norm norm = Norm::kMinMax;
  bool stochastic = false;
};

// Exact length of the payload of `numel` elements.
std::size_t quantized_bytes(const QuantizeConfig& config, std::int64_t numel);

// Quantises `numel` elements at `input` into quantized_bytes() bytes at `output`. `stream` and
// `first_element` matter to stochastic rounding only. Where `reconstruction` is not null it gets
// what dequantize() of the output would assign, in `dtype`; it may be `input` itself.
// No pointer needs alignment. Thread-safe, allocates nothing.
void quantize(const QuantizeConfig& config, DType dtype, const void* input, std::int64_t numel,
              const PhiloxStream& stream, std::uint64_t first_element, std::byte* output,
              void* reconstruction = nullptr);

// The same of float32, and what dequantize() of the output would assign is subtracted from
// `values`.
void quantize_and_subtract(const QuantizeConfig& config, float* values, std::int64_t numel,
                           const PhiloxStream& stream, std::uint64_t first_element,
                           std::byte* output);

// Decodes quantized_bytes() bytes at `input`, whatever their content, into `numel` elements.
void dequantize(const QuantizeConfig& config, const std::byte* input, DType dtype, void* output,
                std::int64_t numel, WriteMode mode);

}  // namespace thinwire::kernels
