// The loop of codecs whose payload is a row of buckets, each coded by itself from float32.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/compressors/codecs/codec.h"
#include "thinwire/compressors/codecs/codec_checks.h"
#include "thinwire/compressors/kernels/elementwise.h"

namespace thinwire {

// Bytes of all buckets of a tensor, where bucket_bytes(elements) are those of one.
template <typename BucketBytes>
std::size_t bucketed_bytes(std::int64_t numel, std::size_t bucket, BucketBytes bucket_bytes) {
  const auto count = static_cast<std::size_t>(numel);
  const std::size_t rest = count % bucket;
  return count / bucket * bucket_bytes(bucket) + (rest > 0 ? bucket_bytes(rest) : 0);
}

inline std::vector<float>& bucket_scratch(std::size_t bucket) {
  thread_local std::vector<float> scratch;
  if (scratch.size() < bucket) scratch.resize(bucket);
  return scratch;
}

// Calls encode(values, elements, first element, out) for every bucket.
template <typename BucketBytes, typename Encode>
void encode_buckets(const ConstTensorView& input, std::size_t bucket, BucketBytes bucket_bytes,
                    std::byte* out, const Encode& encode) {
  const auto count = static_cast<std::size_t>(input.numel);
  const bool direct = input.dtype == DType::kFloat32 &&
                      std::bit_cast<std::uintptr_t>(input.data) % alignof(float) == 0;
  float* scratch = direct ? nullptr : bucket_scratch(bucket).data();
  for (std::size_t first = 0; first < count; first += bucket) {
    const std::size_t elements = std::min(bucket, count - first);
    const float* values = scratch;
    if (direct) {
      values = static_cast<const float*>(input.data) + first;
    } else {
      kernels::load_floats(input.dtype, input.data, first, elements, scratch);
    }
    encode(values, elements, first, out);
    out += bucket_bytes(elements);
  }
}

// Calls decode(in, elements, values) for every bucket and stores the values.
template <typename BucketBytes, typename Decode>
void decode_buckets(const std::byte* in, std::size_t bucket, BucketBytes bucket_bytes,
                    const TensorView& output, WriteMode mode, const Decode& decode) {
  const auto count = static_cast<std::size_t>(output.numel);
  const bool direct = output.dtype == DType::kFloat32 && mode == WriteMode::kAssign &&
                      std::bit_cast<std::uintptr_t>(output.data) % alignof(float) == 0;
  float* scratch = direct ? nullptr : bucket_scratch(bucket).data();
  for (std::size_t first = 0; first < count; first += bucket) {
    const std::size_t elements = std::min(bucket, count - first);
    if (direct) {
      decode(in, elements, static_cast<float*>(output.data) + first);
    } else {
      decode(in, elements, scratch);
      kernels::store_floats(output.dtype, output.data, first, elements, scratch, mode);
    }
    in += bucket_bytes(elements);
  }
}

// Buckets of the sign codecs: planes of whole bytes, random numbers in whole blocks.
inline constexpr std::int64_t kMinBucket = 64, kMaxBucket = std::int64_t{1} << 20;
inline void check_bucket(std::string_view codec, std::int64_t bucket) {
  check(bucket % kMinBucket == 0, codec, ": 'bucket' must be a multiple of ", kMinBucket, ", got ",
        bucket);
}

}  // namespace thinwire
