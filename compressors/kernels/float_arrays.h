// Arithmetic on whole float32 arrays: what a compiler makes of a plain loop for the oldest
// processors costs more than encoding. Each result is that of the scalar expression, rounded after
// every operation. Thread-safe, any alignment, no memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace thinwire::kernels {

// By bits, so that no -ffast-math of a caller's build can fold it away.
bool all_finite(std::span<const float> values);

// out[i] = a[i] + factor · b[i]; `out` may be `a`. All three have the size of `out`. Returns
// whether the result is finite everywhere.
bool add_scaled(const float* a, const float* b, float factor, std::span<float> out);

// out[i] = array[places[i]] and array[places[i]] = a[i] + factor · b[i], or a[i] where there is no
// b, for all places, which are different ones below 2^31.
void gather(const float* array, std::span<const std::uint32_t> places, float* out);
void scatter_scaled(const float* a, const float* b, float factor,
                    std::span<const std::uint32_t> places, float* array);

// values[i] −= less[i], of the size of `values`.
void subtract(std::span<float> values, const float* less);

// values[i] /= divisor.
void divide(std::span<float> values, float divisor);

// out[i] = values[i], of the size of `values`, which must not overlap. Long arrays are written past
// the cache: for what is not read again before much else has been, which spares reading what was
// there.
void copy_past_cache(std::span<const float> values, float* out);

}  // namespace thinwire::kernels
