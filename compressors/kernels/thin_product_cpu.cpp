#include "thinwire/compressors/kernels/thin_product.h"

#include <algorithm>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/thin_product_ref.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/kernels/thin_product_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DThin = hn::CappedTag<float, 16>;
constexpr std::size_t kThinWidth = hn::MaxLanes(DThin());
// Vectors of a row of the thin matrix, and rows of M at a time: as many sums as hide the latency of
// an addition.
constexpr std::size_t kThinVectors = kThinColumns / kThinWidth;
constexpr std::size_t kThinRows = kThinVectors >= 8 ? 1 : 8 / kThinVectors;

template <std::size_t kRows>
HWY_INLINE void ThinRows(const float* m, std::size_t cols, const float* w, std::size_t k,
                         float* p) {
  const DThin d;
  for (std::size_t at = 0; at < k; at += kThinColumns) {
    hn::Vec<DThin> sums[kRows][kThinVectors];
    for (auto& row : sums) {
      for (auto& sum : row) sum = hn::Zero(d);
    }
    for (std::size_t j = 0; j < cols; ++j) {
      hn::Vec<DThin> factor[kThinVectors];
      for (std::size_t v = 0; v < kThinVectors; ++v) {
        factor[v] = hn::LoadU(d, w + j * k + at + v * kThinWidth);
      }
      for (std::size_t a = 0; a < kRows; ++a) {
        const auto value = hn::Set(d, m[a * cols + j]);
        for (std::size_t v = 0; v < kThinVectors; ++v) {
          sums[a][v] = hn::Add(sums[a][v], hn::Mul(value, factor[v]));
        }
      }
    }
    for (std::size_t a = 0; a < kRows; ++a) {
      for (std::size_t v = 0; v < kThinVectors; ++v) {
        hn::StoreU(sums[a][v], d, p + a * k + at + v * kThinWidth);
      }
    }
  }
}

void ThinMultiply(const float* m, std::size_t rows, std::size_t cols, const float* w, std::size_t k,
                  float* p) {
  std::size_t i = 0;
  for (; i + kThinRows <= rows; i += kThinRows) {
    ThinRows<kThinRows>(m + i * cols, cols, w, k, p + i * k);
  }
  for (; i < rows; ++i) ThinRows<1>(m + i * cols, cols, w, k, p + i * k);
}

template <std::size_t kRows, std::size_t kVectors>
HWY_INLINE void SubtractTile(const float* p, const float* q, std::size_t cols, std::size_t k,
                             float* m) {
  const DThin d;
  hn::Vec<DThin> sums[kRows][kVectors];
  for (auto& row : sums) {
    for (auto& sum : row) sum = hn::Zero(d);
  }
  for (std::size_t c = 0; c < k; ++c) {
    hn::Vec<DThin> factor[kVectors];
    for (std::size_t v = 0; v < kVectors; ++v) {
      factor[v] = hn::LoadU(d, q + c * cols + v * kThinWidth);
    }
    for (std::size_t a = 0; a < kRows; ++a) {
      const auto value = hn::Set(d, p[a * k + c]);
      for (std::size_t v = 0; v < kVectors; ++v) {
        sums[a][v] = hn::Add(sums[a][v], hn::Mul(value, factor[v]));
      }
    }
  }
  for (std::size_t a = 0; a < kRows; ++a) {
    for (std::size_t v = 0; v < kVectors; ++v) {
      float* const at = m + a * cols + v * kThinWidth;
      hn::StoreU(hn::Sub(hn::LoadU(d, at), sums[a][v]), d, at);
    }
  }
}

template <std::size_t kRows>
HWY_INLINE void SubtractRows(const float* p, const float* q, std::size_t cols, std::size_t k,
                             float* m) {
  std::size_t j = 0;
  for (; j + 2 * kThinWidth <= cols; j += 2 * kThinWidth) {
    SubtractTile<kRows, 2>(p, q + j, cols, k, m + j);
  }
  for (; j + kThinWidth <= cols; j += kThinWidth) {
    SubtractTile<kRows, 1>(p, q + j, cols, k, m + j);
  }
  for (; j < cols; ++j) {
    for (std::size_t a = 0; a < kRows; ++a) {
      float sum = 0;
      for (std::size_t c = 0; c < k; ++c) sum += p[a * k + c] * q[c * cols + j];
      m[a * cols + j] -= sum;
    }
  }
}

void ThinSubtract(const float* p, const float* q, std::size_t rows, std::size_t cols, std::size_t k,
                  float* m) {
  constexpr std::size_t kRows = 4;
  std::size_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    SubtractRows<kRows>(p + i * k, q, cols, k, m + i * cols);
  }
  for (; i < rows; ++i) SubtractRows<1>(p + i * k, q, cols, k, m + i * cols);
}

void SumsOfSquares(const float* m, std::size_t rows, std::size_t cols, float* of_rows,
                   float* of_columns) {
  const DThin d;
  constexpr std::size_t kParts = ref::kSumLanes / kThinWidth;
  std::fill_n(of_columns, cols, 0.0f);
  for (std::size_t i = 0; i < rows; ++i) {
    const float* const row = m + i * cols;
    hn::Vec<DThin> sums[kParts];
    for (auto& sum : sums) sum = hn::Zero(d);
    std::size_t j = 0;
    for (; j + ref::kSumLanes <= cols; j += ref::kSumLanes) {
      for (std::size_t part = 0; part < kParts; ++part) {
        float* const column = of_columns + j + part * kThinWidth;
        const auto value = hn::LoadU(d, row + j + part * kThinWidth);
        const auto square = hn::Mul(value, value);
        sums[part] = hn::Add(sums[part], square);
        hn::StoreU(hn::Add(hn::LoadU(d, column), square), d, column);
      }
    }
    std::array<float, ref::kSumLanes> lanes;
    for (std::size_t part = 0; part < kParts; ++part) {
      hn::StoreU(sums[part], d, lanes.data() + part * kThinWidth);
    }
    for (std::size_t at = j; at < cols; ++at) {
      const float square = row[at] * row[at];
      lanes[at - j] += square;
      of_columns[at] += square;
    }
    of_rows[i] = ref::fold_lanes(lanes);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::kernels {

HWY_EXPORT(ThinMultiply);
HWY_EXPORT(ThinSubtract);
HWY_EXPORT(SumsOfSquares);

void thin_multiply(const float* m, std::size_t rows, std::size_t cols, const float* w,
                   std::size_t k, float* p) {
  THINWIRE_ASSERT(k % kThinColumns == 0);
  THINWIRE_DISPATCH(ThinMultiply)(m, rows, cols, w, k, p);
}

void thin_subtract(const float* p, const float* q, std::size_t rows, std::size_t cols,
                   std::size_t k, float* m) {
  THINWIRE_DISPATCH(ThinSubtract)(p, q, rows, cols, k, m);
}

void sums_of_squares(const float* m, std::size_t rows, std::size_t cols, float* of_rows,
                     float* of_columns) {
  THINWIRE_DISPATCH(SumsOfSquares)(m, rows, cols, of_rows, of_columns);
}

}  // namespace thinwire::kernels
#endif  // HWY_ONCE
