// Values and payloads that the codec tests share.
#pragma once

#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/kernels/elementwise_ref.h"
#include "thinwire/tests/support/simd_targets.h"

namespace thinwire::testing {

// A tensor of any dtype at any offset from alignment.
class Tensor {
 public:
  Tensor(DType dtype, std::size_t count, std::size_t misalignment = 0)
      : dtype_(dtype), count_(count), offset_(misalignment), bytes_(count * size_of(dtype) + 64) {}

  Tensor(DType dtype, std::span<const float> values, std::size_t misalignment = 0)
      : Tensor(dtype, values.size(), misalignment) {
    for (std::size_t i = 0; i < count_; ++i) kernels::ref::store(dtype, data(), i, values[i]);
  }

  void* data() { return bytes_.data() + offset_; }
  const void* data() const { return bytes_.data() + offset_; }
  float operator[](std::size_t i) const { return kernels::ref::load(dtype_, data(), i); }
  std::size_t size() const { return count_; }
  TensorView view() { return {data(), static_cast<std::int64_t>(count_), dtype_}; }
  ConstTensorView view() const { return {data(), static_cast<std::int64_t>(count_), dtype_}; }
  // All bytes, those around the tensor included: equality also shows stray writes.
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  DType dtype_;
  std::size_t count_, offset_;
  std::vector<std::byte> bytes_;
};

inline std::vector<float> normal_values(std::size_t count, std::uint32_t seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.1f, 1.0f);
  std::vector<float> values(count);
  for (auto& value : values) value = scale * normal(generator);
  return values;
}

inline std::vector<std::byte> compressed(const Codec& codec, ConstTensorView input,
                                         const RandomKey& key = {}) {
  std::vector<std::byte> payload(codec.max_compressed_bytes(input.numel, input.dtype));
  payload.resize(codec.compress(input, key, payload));
  return payload;
}

inline std::vector<float> round_trip(const Codec& codec, std::span<const float> values,
                                     const RandomKey& key = {}) {
  std::vector<float> decoded(values.size());
  codec.decompress(compressed(codec, view_of(values), key), key, view_of(std::span(decoded)),
                   WriteMode::kAssign);
  return decoded;
}

inline constexpr DType kAllDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16,
                                       DType::kFloat64};

}  // namespace thinwire::testing
