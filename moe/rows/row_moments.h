// First and second moments of normalised rows, of which a spectral basis is made.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/moe/rows/spectral_rows.h"

namespace thinwire::moe {

// Sums over rows x / |x|: their number, themselves and their outer products, in float64. Copies
// share memory. Not thread-safe.
class RowMoments {
 public:
  explicit RowMoments(std::int64_t dim);

  // Adds some of the rows [n, d], evenly spread; rows of zeros and rows with NaN or infinities are
  // left out.
  void add(const at::Tensor& rows);
  // this = decay · this + other.
  void decay_and_add(double decay, const RowMoments& other);
  void clear() { sums_.zero_(); }
  double count() const;

  // [1 + d + d (d + 1) / 2] float32: number, sum, upper triangle of the outer products.
  at::Tensor packed() const;
  static RowMoments unpacked(const at::Tensor& packed, std::int64_t dim);
  static std::int64_t packed_size(std::int64_t dim) { return 1 + dim + dim * (dim + 1) / 2; }

  // All sums, [1 + d + d²] float64.
  at::Tensor& sums() { return sums_; }
  const at::Tensor& sums() const { return sums_; }

  // What `basis` would lose of rows like these over what it promised; see SpectralOptions::drift.
  // Needs count() > 0.
  double drift_from(const SpectralBasis& basis) const;
  // The basis for rows like these, as bytes that all ranks turn into the same SpectralBasis; see
  // basis_of() and is_settled(). Needs count() > 0.
  at::Tensor basis_message(const SpectralOptions& options, bool settled) const;

 private:
  // Of the rows so far, of which there must be some: [d] and [d, d] float64.
  at::Tensor mean() const;
  at::Tensor mean_outer() const;

  std::int64_t dim_;
  at::Tensor sums_;
};

// Bytes of a message: whether the basis is settled (0: there is none), the bits an element that it
// was made for, mean, deviations, bits and the basis in bfloat16, whose rounding costs less than
// its bytes.
std::int64_t basis_message_bytes(std::int64_t dim);
// Null for a message without a basis. Throws FrameError for bytes that are no message.
std::shared_ptr<const SpectralBasis> basis_of(const at::Tensor& message,
                                              const SpectralOptions& options, std::int64_t dim);
// Whether a message has a basis for these options.
bool is_made_for(const at::Tensor& message, const SpectralOptions& options, std::int64_t dim);
// Whether rows stay near enough to the basis of a message that it may be used.
bool is_settled(const at::Tensor& message);

}  // namespace thinwire::moe
