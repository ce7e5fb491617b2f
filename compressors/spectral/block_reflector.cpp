#include "thinwire/compressors/spectral/block_reflector.h"

#include <algorithm>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/low_rank.h"
#include "thinwire/compressors/kernels/thin_product.h"
#include "thinwire/compressors/spectral/scratch.h"

namespace thinwire::spectral {
namespace {

// (U₁ − I)⁻¹ for the first k rows of U by Gauss-Jordan elimination, row-major. A column is negated
// where its pivot is above zero: with the one of I all pivots are beyond −1, so that no rows need
// be exchanged. Double precision throughout, no function but the four operations.
std::vector<double> inverse_of_top(std::span<float> columns, std::size_t n, std::size_t k) {
  std::vector<double> a(k * k), inverse(k * k, 0.0);
  for (std::size_t r = 0; r < k; ++r) {
    for (std::size_t c = 0; c < k; ++c) a[r * k + c] = static_cast<double>(columns[c * n + r]);
    inverse[r * k + r] = 1;
  }
  for (std::size_t i = 0; i < k; ++i) {
    if (a[i * k + i] > 0) {
      for (std::size_t r = 0; r < k; ++r) a[r * k + i] = -a[r * k + i];
      for (float& value : columns.subspan(i * n, n)) value = -value;
    }
    // Rows above and below have nothing of this column of I yet.
    a[i * k + i] -= 1;
    const double pivot = a[i * k + i];
    for (std::size_t c = 0; c < k; ++c) {
      a[i * k + c] /= pivot;
      inverse[i * k + c] /= pivot;
    }
    for (std::size_t r = 0; r < k; ++r) {
      const double factor = a[r * k + i];
      if (r == i || factor == 0) continue;
      for (std::size_t c = 0; c < k; ++c) {
        a[r * k + c] -= factor * a[i * k + c];
        inverse[r * k + c] -= factor * inverse[i * k + c];
      }
    }
  }
  return inverse;
}

// Buffers of the calling thread, which keep their memory from call to call.
struct TurnScratch {
  std::vector<float> product, rows, columns, corner, turned;
};
TurnScratch& turn_scratch() {
  thread_local TurnScratch instance;
  return instance;
}

}  // namespace

BlockReflector::BlockReflector(std::span<float> columns, std::size_t n, std::size_t k) {
  THINWIRE_ASSERT(k >= 1 && k <= n && columns.size() == n * k);
  const std::vector<double> inverse = inverse_of_top(columns, n, k);
  padded_ = kernels::thin_columns(k);
  rows_.assign(n * padded_, 0.0f);
  columns_.assign(n * padded_, 0.0f);
  t_.assign(padded_ * padded_, 0.0f);
  t_transposed_ = t_;
  for (std::size_t c = 0; c < k; ++c) {
    for (std::size_t r = 0; r < n; ++r) {
      const float value = columns[c * n + r] - (r == c ? 1.0f : 0.0f);
      rows_[r * padded_ + c] = value;
      columns_[c * n + r] = value;
    }
    for (std::size_t d = 0; d < k; ++d) {
      const auto value = static_cast<float>(-inverse[d * k + c]);
      t_[c * padded_ + d] = value;
      t_transposed_[d * padded_ + c] = value;
    }
  }
}

// Lᵀ M R = M − A Wᵣᵀ − Wₗ B with A = (M Wᵣ) Tᵣ and B = Tₗᵀ (Wₗᵀ M − (Wₗᵀ A) Wᵣᵀ): two products that
// read M, and one that changes it. L M Rᵀ is the same with T transposed.
class Turn {
 public:
  Turn(const BlockReflector& left, const BlockReflector& right, Direction direction,
       std::size_t rows, std::size_t cols)
      : left_(left),
        right_(right),
        into_(direction == Direction::kInto),
        rows_(rows),
        cols_(cols) {}

  void apply(float* m) const {
    const std::size_t l = left_.padded_, r = right_.padded_, k = l + r;
    TurnScratch& s = turn_scratch();
    float* const p = room(s.rows, rows_ * k);     // [A | Wₗ], a row of k after the other
    float* const q = room(s.columns, cols_ * k);  // Wᵣᵀ above B
    float* const a = room(s.turned, rows_ * r);
    multiply_right(m, a);
    copy_columns(a, r, p, k, 0);
    copy_columns(left_.rows_.data(), l, p, k, r);
    std::copy_n(right_.columns_.data(), r * cols_, q);
    multiply_left(m, a, q + r * cols_);
    kernels::thin_subtract(p, q, rows_, cols_, k, m);
  }

 private:
  // A
  void multiply_right(const float* m, float* a) const {
    const std::size_t r = right_.padded_;
    if (r == 0) return;
    float* const product = room(turn_scratch().product, rows_ * r);
    kernels::thin_multiply(m, rows_, cols_, right_.rows_.data(), r, product);
    const auto& t = into_ ? right_.t_ : right_.t_transposed_;
    kernels::thin_multiply(product, rows_, r, t.data(), r, a);
  }

  // B
  void multiply_left(const float* m, const float* a, float* b) const {
    const std::size_t l = left_.padded_, r = right_.padded_;
    if (l == 0) return;
    float* const product = room(turn_scratch().product, l * cols_);
    kernels::low_rank_multiply_transposed(m, rows_, cols_, left_.columns_.data(), l, product);
    if (r > 0) {
      float* const corner = room(turn_scratch().corner, l * r);
      kernels::low_rank_multiply_transposed(a, rows_, r, left_.columns_.data(), l, corner);
      kernels::thin_subtract(corner, right_.columns_.data(), l, cols_, r, product);
    }
    // The subtraction makes −T X of T X.
    const auto& t = into_ ? left_.t_transposed_ : left_.t_;
    std::fill_n(b, l * cols_, 0.0f);
    kernels::thin_subtract(t.data(), product, l, cols_, l, b);
    for (std::size_t i = 0; i < l * cols_; ++i) b[i] = -b[i];
  }

  void copy_columns(const float* from, std::size_t count, float* to, std::size_t stride,
                    std::size_t first) const {
    for (std::size_t i = 0; i < rows_; ++i) {
      std::copy_n(from + i * count, count, to + i * stride + first);
    }
  }

  const BlockReflector& left_;
  const BlockReflector& right_;
  const bool into_;
  const std::size_t rows_, cols_;
};

void turn(const BlockReflector& left, const BlockReflector& right, Direction direction,
          std::size_t rows, std::size_t cols, std::span<float> m) {
  THINWIRE_ASSERT(m.size() == rows * cols);
  if (left.identity() && right.identity()) return;
  Turn(left, right, direction, rows, cols).apply(m.data());
}

}  // namespace thinwire::spectral
