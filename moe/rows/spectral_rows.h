// The spectral row codec, `spectral(bits=2.5)`: a transform coder for rows that live near a
// low-dimensional subspace, as the tokens of one layer do.
//
// A row x is sent as a scale s and the quantised coordinates of x / |x| in an orthonormal basis B
// that all ranks share, around the rows' mean direction μ:
//   c_j = <x / |x| - μ, b_j> / σ_j      decoded:  x ≈ s · (μ + Σ_j σ_j q(c_j) b_j)
// B and σ are eigenvectors and standard deviations of the normalised rows. Component j gets an
// integer number of bits, by reverse water-filling (Cover and Thomas, Elements of Information
// Theory, section 10.3): bit after bit goes to the component where it removes most of the error.
// Every component has a quantiser of fixed size (spectral_levels.h), so every row costs the same
// bytes. s minimises the error of the decoded row.
//
// With coding=entropy a row is sent as its length, and its coordinates around that times μ go
// through the entropy coder with those of all rows of the message, in classes of equal σ
// (entropy_rows.h): the same error in about three quarters of the bits.
//
// Where B comes from, and how the ranks agree on it: basis_agreement.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/common/spec.h"

namespace thinwire::moe {

struct SpectralOptions {
  // Bits per element on the wire, the scale of the row included.
  double bits = 2.5;
  // Training steps between two bases.
  std::int64_t refresh = 20;
  // A basis is used only where the one before it would have lost at most so many times as much of
  // the rows since then as it promised: in the first steps rows leave their subspace faster than
  // bases follow, and what lies outside it can never be learned.
  double drift = 1.5;
  // Codec of the rows meanwhile.
  std::string start = "quantize(bits=8)";
  bool entropy = false;  // how coordinates are coded
};

// spectral(bits=2.5, refresh=20, drift=1.5, start=quantize(bits=8), coding=levels|entropy). Throws
// InvalidArgument.
SpectralOptions parse_spectral(const Spec& spec);
std::string spec_of(const SpectralOptions& options);
// Bytes of a row of `dim` elements: the whole bytes that `bits` pay for, at least three.
std::int64_t spectral_row_bytes(double bits, std::int64_t dim);

// How often each component is worth a bit. variance: of every component. Returns bits per component
// with a sum of at most `budget`. Deterministic; of equal gains the lower index wins.
std::vector<std::uint8_t> allocate_bits(const std::vector<double>& variance, std::int64_t budget);

// What sender and receiver must share. Immutable; thread-safe.
class SpectralBasis {
 public:
  // mean: [d] float32; deviation: [d] float32, of every component; bits: [d]; basis: [d, d]
  // float32, a row a component, of which those without bits are not used. Throws InvalidArgument
  // for shapes that do not fit, or for more bits than fit `row_bytes`.
  SpectralBasis(const at::Tensor& mean, const at::Tensor& deviation, std::vector<std::uint8_t> bits,
                const at::Tensor& basis, std::int64_t row_bytes);

  std::int64_t dim() const { return mean_.size(0); }
  // [d, d] float32, a row a component, in order of falling deviations; [d] of these; and [d] of the
  // mean of normalised rows, in the basis.
  const at::Tensor& axes() const { return axes_; }
  const at::Tensor& deviations() const { return deviations_; }
  const at::Tensor& mean_in_basis() const { return mean_in_basis_; }
  std::int64_t row_bytes() const { return row_bytes_; }
  // Bits of every component in the order of the constructor.
  const std::vector<std::uint8_t>& bits() const { return bits_; }

  // sqrt(E |x - x'|²) that its bits should give for normalised rows x like those it was made of.
  double expected_error() const { return expected_error_; }
  // The same for normalised rows with another mean [d] and mean outer product [d, d], both float64.
  double expected_error(const at::Tensor& mean, const at::Tensor& outer) const;

  // [n, d] contiguous rows of the host -> [n, row_bytes] uint8. A row with NaN or infinities
  // decodes to NaN in all its elements; a row of zeros to zeros.
  at::Tensor encode(const at::Tensor& rows) const;
  // Any bytes decode to something. Throws FrameError for a wrong shape.
  at::Tensor decode(const at::Tensor& bytes, at::ScalarType dtype) const;

 private:
  struct Group {  // consecutive used components with equal bits
    int bits;
    std::size_t begin, end;
  };

  // total: variance of all components; variance: of the used ones.
  double error_of(double total, const at::Tensor& variance) const;

  std::int64_t row_bytes_;
  std::vector<std::uint8_t> bits_;
  at::Tensor mean_;
  at::Tensor axes_, deviations_, mean_in_basis_;
  at::Tensor expand_;             // [m + 1, d]: used components, then the mean
  at::Tensor project_;            // its transpose
  std::vector<float> deviation_;  // [m]
  std::vector<float> inverse_deviation_;
  std::vector<float> offset_;  // [m] of the mean in the basis
  double mean_square_ = 0;
  double expected_error_ = 0;
  std::vector<Group> groups_;
};

}  // namespace thinwire::moe
