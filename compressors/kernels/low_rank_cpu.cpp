#include "thinwire/compressors/kernels/low_rank.h"

#include <algorithm>

#include "thinwire/compressors/kernels/low_rank_ref.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/kernels/low_rank_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
constexpr std::size_t kWidth = hn::MaxLanes(D());
constexpr std::size_t kParts = ref::kSumLanes / kWidth;

// Columns of Q per visit of a row: enough to reuse what is loaded, few enough for the registers.
constexpr std::size_t kColumns = 4;

// P[c][i] for kRows rows from `m` and kCols columns of Q: 16-lane sums in registers.
template <std::size_t kRows, std::size_t kCols>
HWY_INLINE void MultiplyTile(const float* m, std::size_t cols, const float* q, float* p,
                             std::size_t rows) {
  const D d;
  hn::Vec<D> sums[kRows][kCols][kParts];
  for (auto& row : sums) {
    for (auto& column : row) {
      for (auto& part : column) part = hn::Zero(d);
    }
  }
  std::size_t j = 0;
  for (; j + ref::kSumLanes <= cols; j += ref::kSumLanes) {
    for (std::size_t part = 0; part < kParts; ++part) {
      const std::size_t at = j + part * kWidth;
      for (std::size_t a = 0; a < kRows; ++a) {
        const auto v = hn::LoadU(d, m + a * cols + at);
        for (std::size_t c = 0; c < kCols; ++c) {
          const auto product = hn::Mul(v, hn::LoadU(d, q + c * cols + at));
          sums[a][c][part] = hn::Add(sums[a][c][part], product);
        }
      }
    }
  }
  for (std::size_t a = 0; a < kRows; ++a) {
    for (std::size_t c = 0; c < kCols; ++c) {
      std::array<float, ref::kSumLanes> lanes;
      for (std::size_t part = 0; part < kParts; ++part) {
        hn::StoreU(sums[a][c][part], d, lanes.data() + part * kWidth);
      }
      for (std::size_t k = j; k < cols; ++k) lanes[k - j] += m[a * cols + k] * q[c * cols + k];
      p[c * rows + a] = ref::fold_lanes(lanes);
    }
  }
}

void Multiply(const float* m, std::size_t rows, std::size_t cols, const float* q, std::size_t r,
              float* p) {
  constexpr std::size_t kRows = 2;
  std::size_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    const float* row = m + i * cols;
    std::size_t c = 0;
    for (; c + kColumns <= r; c += kColumns) {
      MultiplyTile<kRows, kColumns>(row, cols, q + c * cols, p + c * rows + i, rows);
    }
    for (; c < r; ++c) MultiplyTile<kRows, 1>(row, cols, q + c * cols, p + c * rows + i, rows);
  }
  for (; i < rows; ++i) {
    for (std::size_t c = 0; c < r; ++c) {
      MultiplyTile<1, 1>(m + i * cols, cols, q + c * cols, p + c * rows + i, rows);
    }
  }
}

// q[c][j] += Σ of kRows rows, in order, for kCols columns of P.
template <std::size_t kRows, std::size_t kCols>
HWY_INLINE void AddRows(const float* m, std::size_t cols, const float* p, std::size_t rows,
                        float* q) {
  const D d;
  hn::Vec<D> factor[kCols][kRows];
  for (std::size_t c = 0; c < kCols; ++c) {
    for (std::size_t a = 0; a < kRows; ++a) factor[c][a] = hn::Set(d, p[c * rows + a]);
  }
  std::size_t j = 0;
  for (; j + kWidth <= cols; j += kWidth) {
    hn::Vec<D> sums[kCols];
    for (std::size_t c = 0; c < kCols; ++c) sums[c] = hn::LoadU(d, q + c * cols + j);
    for (std::size_t a = 0; a < kRows; ++a) {
      const auto v = hn::LoadU(d, m + a * cols + j);
      for (std::size_t c = 0; c < kCols; ++c) sums[c] = hn::Add(sums[c], hn::Mul(v, factor[c][a]));
    }
    for (std::size_t c = 0; c < kCols; ++c) hn::StoreU(sums[c], d, q + c * cols + j);
  }
  for (; j < cols; ++j) {
    for (std::size_t c = 0; c < kCols; ++c) {
      float sum = q[c * cols + j];
      for (std::size_t a = 0; a < kRows; ++a) sum += m[a * cols + j] * p[c * rows + a];
      q[c * cols + j] = sum;
    }
  }
}

void MultiplyTransposed(const float* m, std::size_t rows, std::size_t cols, const float* p,
                        std::size_t r, float* q) {
  constexpr std::size_t kRows = 4;
  std::fill_n(q, r * cols, 0.0f);
  std::size_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    const float* row = m + i * cols;
    std::size_t c = 0;
    for (; c + kColumns <= r; c += kColumns) {
      AddRows<kRows, kColumns>(row, cols, p + c * rows + i, rows, q + c * cols);
    }
    for (; c < r; ++c) AddRows<kRows, 1>(row, cols, p + c * rows + i, rows, q + c * cols);
  }
  for (; i < rows; ++i) {
    for (std::size_t c = 0; c < r; ++c) {
      AddRows<1, 1>(m + i * cols, cols, p + c * rows + i, rows, q + c * cols);
    }
  }
}

// kRows rows of P Qᵀ into `m`, of which P's begin at `p`; `lost`, if kLost, takes what P own_qᵀ
// leaves of what was there. What is loaded of the factors serves all rows.
template <std::size_t kRows, bool kLost>
HWY_INLINE void ReconstructRows(const float* p, const float* own_q, const float* q,
                                std::size_t rows, std::size_t cols, std::size_t r, float* m,
                                float* lost) {
  const auto columns = [&](auto d, std::size_t j) HWY_ATTR {
    hn::Vec<decltype(d)> mean[kRows], own[kRows];
    for (std::size_t a = 0; a < kRows; ++a) mean[a] = own[a] = hn::Zero(d);
    for (std::size_t c = 0; c < r; ++c) {
      const auto of_mean = hn::LoadU(d, q + c * cols + j);
      for (std::size_t a = 0; a < kRows; ++a) {
        const auto factor = hn::Set(d, p[c * rows + a]);
        mean[a] = hn::Add(mean[a], hn::Mul(factor, of_mean));
        if constexpr (kLost) {
          own[a] = hn::Add(own[a], hn::Mul(factor, hn::LoadU(d, own_q + c * cols + j)));
        }
      }
    }
    for (std::size_t a = 0; a < kRows; ++a) {
      float* const at = m + a * cols + j;
      if constexpr (kLost) hn::StoreU(hn::Sub(hn::LoadU(d, at), own[a]), d, lost + a * cols + j);
      hn::StoreU(mean[a], d, at);
    }
  };
  std::size_t j = 0;
  for (; j + kWidth <= cols; j += kWidth) columns(D(), j);
  for (; j < cols; ++j) columns(hn::CappedTag<float, 1>(), j);
}

template <bool kLost>
HWY_INLINE void ReconstructAll(const float* p, const float* own_q, const float* q, std::size_t rows,
                               std::size_t cols, std::size_t r, float* m, float* lost) {
  constexpr std::size_t kRows = 4;
  std::size_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    ReconstructRows<kRows, kLost>(p + i, own_q, q, rows, cols, r, m + i * cols,
                                  kLost ? lost + i * cols : nullptr);
  }
  for (; i < rows; ++i) {
    ReconstructRows<1, kLost>(p + i, own_q, q, rows, cols, r, m + i * cols,
                              kLost ? lost + i * cols : nullptr);
  }
}

void Reconstruct(const float* p, const float* q, std::size_t rows, std::size_t cols, std::size_t r,
                 float* m) {
  ReconstructAll<false>(p, nullptr, q, rows, cols, r, m, nullptr);
}

void ReplaceByMean(const float* p, const float* own_q, const float* q, std::size_t rows,
                   std::size_t cols, std::size_t r, float* m, float* lost) {
  ReconstructAll<true>(p, own_q, q, rows, cols, r, m, lost);
}

double Dot(const float* a, const float* b, std::size_t n) {
#if HWY_TARGET == HWY_SCALAR
  return ref::dot(a, b, n);
#else
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> df;
  constexpr std::size_t kDoubles = hn::MaxLanes(hn::CappedTag<double, 8>());
  constexpr std::size_t kSums = ref::kSumLanes / kDoubles;
  hn::Vec<decltype(d)> sums[kSums];
  for (auto& sum : sums) sum = hn::Zero(d);
  std::size_t i = 0;
  for (; i + ref::kSumLanes <= n; i += ref::kSumLanes) {
    for (std::size_t s = 0; s < kSums; ++s) {
      const auto x = hn::PromoteTo(d, hn::LoadU(df, a + i + s * kDoubles));
      const auto y = hn::PromoteTo(d, hn::LoadU(df, b + i + s * kDoubles));
      sums[s] = hn::Add(sums[s], hn::Mul(x, y));
    }
  }
  std::array<double, ref::kSumLanes> lanes;
  for (std::size_t s = 0; s < kSums; ++s) hn::StoreU(sums[s], d, lanes.data() + s * kDoubles);
  for (std::size_t k = i; k < n; ++k) {
    lanes[k - i] += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  }
  return ref::fold_lanes(lanes);
#endif
}

void Axpy(float* a, const float* b, float factor, std::size_t n) {
  const D d;
  const auto f = hn::Set(d, factor);
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    hn::StoreU(hn::Add(hn::LoadU(d, a + i), hn::Mul(f, hn::LoadU(d, b + i))), d, a + i);
  }
  for (; i < n; ++i) a[i] += factor * b[i];
}

void Orthogonalize(float* p, std::size_t rows, std::size_t r) {
  ref::orthogonalize_with(p, rows, r, Dot, Axpy);
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::kernels {

HWY_EXPORT(Multiply);
HWY_EXPORT(MultiplyTransposed);
HWY_EXPORT(Reconstruct);
HWY_EXPORT(ReplaceByMean);
HWY_EXPORT(Orthogonalize);

void low_rank_multiply(const float* m, std::size_t rows, std::size_t cols, const float* q,
                       std::size_t r, float* p) {
  THINWIRE_DISPATCH(Multiply)(m, rows, cols, q, r, p);
}

void low_rank_multiply_transposed(const float* m, std::size_t rows, std::size_t cols,
                                  const float* p, std::size_t r, float* q) {
  THINWIRE_DISPATCH(MultiplyTransposed)(m, rows, cols, p, r, q);
}

void low_rank_reconstruct(const float* p, const float* q, std::size_t rows, std::size_t cols,
                          std::size_t r, float* m) {
  THINWIRE_DISPATCH(Reconstruct)(p, q, rows, cols, r, m);
}

void low_rank_replace(const float* p, const float* own_q, const float* q, std::size_t rows,
                      std::size_t cols, std::size_t r, float* m, float* lost) {
  THINWIRE_DISPATCH(ReplaceByMean)(p, own_q, q, rows, cols, r, m, lost);
}

void orthogonalize(float* p, std::size_t rows, std::size_t r) {
  THINWIRE_DISPATCH(Orthogonalize)(p, rows, r);
}

}  // namespace thinwire::kernels
#endif  // HWY_ONCE
