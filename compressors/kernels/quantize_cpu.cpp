#include "thinwire/compressors/kernels/quantize_ref.h"

namespace thinwire::kernels {

std::size_t quantized_bytes(const QuantizeConfig& config, std::int64_t numel) {
  const auto count = static_cast<std::size_t>(numel);
  const auto bucket = static_cast<std::size_t>(config.bucket);
  const std::size_t rest = count % bucket;
  return count / bucket * bucket_bytes(config.norm, config.bits, bucket) +
         (rest > 0 ? bucket_bytes(config.norm, config.bits, rest) : 0);
}

void quantize(const QuantizeConfig& config, DType dtype, const void* input, std::int64_t numel,
              const PhiloxStream& stream, std::uint64_t first_element, std::byte* output,
              void* reconstruction) {
  ref::quantize(config, dtype, input, numel, stream, first_element, output, reconstruction);
}

void dequantize(const QuantizeConfig& config, const std::byte* input, DType dtype, void* output,
                std::int64_t numel, WriteMode mode) {
  ref::dequantize(config, input, dtype, output, numel, mode);
}

}  // namespace thinwire::kernels
