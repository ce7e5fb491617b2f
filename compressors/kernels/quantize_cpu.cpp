// Outline: for every bucket one sweep for its bounds and one that rounds and packs, both over
// memory that the first sweep brought into the cache, so that a codec call reads its input once.
// See Note [Packing by lanes].
#include <algorithm>
#include <array>

#include "thinwire/compressors/kernels/elementwise.h"
#include "thinwire/compressors/kernels/quantize_ref.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/kernels/quantize_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"
#include "thinwire/compressors/kernels/quantize_decode-inl.h"
#include "thinwire/compressors/kernels/quantize_encode-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {

// `decoded`, where it is not null, gets what the payload decodes to, as kMode has it.
template <PutMode kMode>
HWY_INLINE void QuantizeAll(const QuantizeConfig& config, DType dtype, const std::byte* input,
                            std::size_t count, const PhiloxStream& stream,
                            std::uint64_t first_element, std::byte* output, std::byte* decoded) {
  const BucketEncoder encoder(config, stream);
  const BucketDecoder<kMode> decoder(config);
  const auto bucket = static_cast<std::size_t>(config.bucket);
  const auto analyse = [&](std::size_t first) {
    return encoder.Analyse(dtype, input + first * size_of(dtype), std::min(bucket, count - first));
  };
  // The next bucket's bounds are found before this one is packed: its grid takes a chain of a
  // hundred cycles, which packing hides.
  BucketEncoder::Plan next{};
  if (count > 0) next = analyse(0);
  for (std::size_t first = 0; first < count; first += bucket) {
    const std::size_t elements = std::min(bucket, count - first);
    const BucketEncoder::Plan plan = next;
    if (first + elements < count) next = analyse(first + elements);
    encoder.Encode(plan, dtype, input + first * size_of(dtype), elements, first_element + first,
                   output);
    if (decoded != nullptr) {
      decoder.Decode(output, dtype, decoded + first * size_of(dtype), elements);
    }
    output += bucket_bytes(config.norm, config.bits, elements);
  }
}

void Quantize(const QuantizeConfig& config, DType dtype, const std::byte* input, std::size_t count,
              const PhiloxStream& stream, std::uint64_t first_element, std::byte* output,
              std::byte* reconstruction) {
  QuantizeAll<PutMode::kAssign>(config, dtype, input, count, stream, first_element, output,
                                reconstruction);
}

void QuantizeAndSubtract(const QuantizeConfig& config, float* values, std::size_t count,
                         const PhiloxStream& stream, std::uint64_t first_element,
                         std::byte* output) {
  auto* const bytes = reinterpret_cast<std::byte*>(values);
  QuantizeAll<PutMode::kSubtract>(config, DType::kFloat32, bytes, count, stream, first_element,
                                  output, bytes);
}

template <PutMode kMode>
HWY_INLINE void DequantizeAll(const QuantizeConfig& config, const std::byte* input, DType dtype,
                              std::byte* output, std::size_t count) {
  const BucketDecoder<kMode> decoder(config);
  const auto bucket = static_cast<std::size_t>(config.bucket);
  for (std::size_t first = 0; first < count; first += bucket) {
    const std::size_t elements = std::min(bucket, count - first);
    decoder.Decode(input, dtype, output + first * size_of(dtype), elements);
    input += bucket_bytes(config.norm, config.bits, elements);
  }
}

void Dequantize(const QuantizeConfig& config, const std::byte* input, DType dtype,
                std::byte* output, std::size_t count, WriteMode mode) {
  if (mode == WriteMode::kAssign) {
    DequantizeAll<PutMode::kAssign>(config, input, dtype, output, count);
  } else {
    DequantizeAll<PutMode::kAdd>(config, input, dtype, output, count);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::kernels {

HWY_EXPORT(Quantize);
HWY_EXPORT(QuantizeAndSubtract);
HWY_EXPORT(Dequantize);

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
  THINWIRE_DISPATCH(Quantize)
  (config, dtype, static_cast<const std::byte*>(input), static_cast<std::size_t>(numel), stream,
   first_element, output, static_cast<std::byte*>(reconstruction));
}

void quantize_and_subtract(const QuantizeConfig& config, float* values, std::int64_t numel,
                           const PhiloxStream& stream, std::uint64_t first_element,
                           std::byte* output) {
  THINWIRE_DISPATCH(QuantizeAndSubtract)
  (config, values, static_cast<std::size_t>(numel), stream, first_element, output);
}

void dequantize(const QuantizeConfig& config, const std::byte* input, DType dtype, void* output,
                std::int64_t numel, WriteMode mode) {
  THINWIRE_DISPATCH(Dequantize)
  (config, input, dtype, static_cast<std::byte*>(output), static_cast<std::size_t>(numel), mode);
}

}  // namespace thinwire::kernels
#endif  // HWY_ONCE
