// The two codecs that keep little more than signs, bucket by bucket: onebit and terngrad. Their
// payloads (m elements in a bucket, the last one may be short; bit i of a plane is bit i % 8 of
// byte i / 8, unused bits zero):
//
//   onebit    f32 mean of the elements that are not negative · f32 mean of the negative ones ·
//             plane of signs (1: negative)
//   terngrad  f32 scale s · plane of the elements sent as ±s · plane of their signs
//
// sign_planes_ref.h is the scalar reference that every SIMD target equals bit for bit.
// No pointer to bytes needs alignment. Thread-safe, allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "thinwire/common/philox.h"

namespace thinwire::kernels {

constexpr std::size_t plane_bytes(std::size_t elements) {
  return (elements + 7) / 8;
}
constexpr std::size_t onebit_bytes(std::size_t elements) {
  return 8 + plane_bytes(elements);
}
constexpr std::size_t terngrad_bytes(std::size_t elements) {
  return 4 + 2 * plane_bytes(elements);
}

// One bucket of `count` >= 1 elements into onebit_bytes(count). A mean is NaN or infinite exactly
// where one of its elements is.
void onebit_encode(const float* x, std::size_t count, std::byte* out);
void onebit_decode(const std::byte* in, std::size_t count, float* out);
// values[i] −= what onebit_decode() writes.
void onebit_subtract(const std::byte* in, std::size_t count, float* values);

// One bucket of `count` >= 1 elements into terngrad_bytes(count). Element i is sent with
// probability min(1, |x_i| / s), where s is the largest magnitude or, if smaller and `clip` > 0,
// clip times the root of the mean square. s is NaN where an element is not finite.
//
// `first` (a multiple of 16) is the index of x[0] in the stream of random numbers: word w of the
// stream serves elements 4w … 4w+3, each by the top 24 bits of the word rotated by another byte.
// Every element's number is uniform; only numbers of one word depend on each other, weakly.
void terngrad_encode(const float* x, std::size_t count, float clip, const PhiloxStream& stream,
                     std::uint64_t first, std::byte* out);
// Decodes to NaN where the scale is not finite.
void terngrad_decode(const std::byte* in, std::size_t count, float* out);

}  // namespace thinwire::kernels
