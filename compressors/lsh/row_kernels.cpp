#include "thinwire/compressors/lsh/row_kernels.h"

#include "thinwire/compressors/lsh/row_kernels_ref.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/lsh/row_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::lsh::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The eight partial sums fill one vector of AVX-512, two of AVX2, four of SSE.
using D = hn::CappedTag<double, 8>;
using V = hn::Vec<D>;
constexpr std::size_t kSums = 8;

HWY_INLINE V LoadAsDouble(const double* x) {
  return hn::LoadU(D(), x);
}
HWY_INLINE V LoadAsDouble(const float* x) {
  return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<float, D>(), x));
}

struct Value {
  template <typename T>
  static V At(const T* x, const T*, std::size_t i) {
    return LoadAsDouble(x + i);
  }
  template <typename T>
  static double AtScalar(const T* x, const T*, std::size_t i) {
    return static_cast<double>(x[i]);
  }
};
struct Difference {
  template <typename X, typename Y>
  static V At(const X* x, const Y* y, std::size_t i) {
    return hn::Sub(LoadAsDouble(x + i), LoadAsDouble(y + i));
  }
  template <typename X, typename Y>
  static double AtScalar(const X* x, const Y* y, std::size_t i) {
    return static_cast<double>(x[i]) - static_cast<double>(y[i]);
  }
};

template <typename Term, typename X, typename Y>
double SumOfSquares(const X* x, const Y* y, std::size_t n) {
  const D d;
  if constexpr (hn::MaxLanes(D()) == 1) {  // Highway's scalar target
    return sum_of_squares_ref(n, [&](std::size_t i) { return Term::AtScalar(x, y, i); });
  }
  const std::size_t lanes = hn::Lanes(d);
  V v0 = hn::Zero(d), v1 = v0, v2 = v0, v3 = v0;
  const auto add = [&](V& sum, std::size_t i) HWY_ATTR {
    const V term = Term::At(x, y, i);
    sum = hn::Add(sum, hn::Mul(term, term));
  };
  std::size_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    add(v0, i);
    if (lanes <= 4) add(v1, i + lanes);
    if (lanes <= 2) {
      add(v2, i + 2 * lanes);
      add(v3, i + 3 * lanes);
    }
  }
  HWY_ALIGN double sums[kSums] = {};
  hn::Store(v0, d, sums);
  if (lanes <= 4) hn::Store(v1, d, sums + lanes);
  if (lanes <= 2) {
    hn::Store(v2, d, sums + 2 * lanes);
    hn::Store(v3, d, sums + 3 * lanes);
  }
  for (std::size_t j = 0; i < n; ++i, ++j) {
    const double term = Term::AtScalar(x, y, i);
    sums[j] += term * term;
  }
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

template <typename T>
void AddRowOf(const T* x, double* sums, std::size_t n) {
  const D d;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(hn::Add(hn::LoadU(d, sums + i), LoadAsDouble(x + i)), d, sums + i);
  }
  for (; i < n; ++i) sums[i] += static_cast<double>(x[i]);
}

double NormOfFloats(const float* x, std::size_t n) {
  return SumOfSquares<Value>(x, x, n);
}
double NormOfDoubles(const double* x, std::size_t n) {
  return SumOfSquares<Value>(x, x, n);
}
double DistanceOfFloats(const float* x, const float* y, std::size_t n) {
  return SumOfSquares<Difference>(x, y, n);
}
double DistanceOfDoubles(const double* x, const double* y, std::size_t n) {
  return SumOfSquares<Difference>(x, y, n);
}
double DistanceOfMixed(const float* x, const double* y, std::size_t n) {
  return SumOfSquares<Difference>(x, y, n);
}
void AddFloats(const float* x, double* sums, std::size_t n) {
  AddRowOf(x, sums, n);
}
void AddDoubles(const double* x, double* sums, std::size_t n) {
  AddRowOf(x, sums, n);
}

}  // namespace thinwire::lsh::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::lsh {

HWY_EXPORT(NormOfFloats);
HWY_EXPORT(NormOfDoubles);
HWY_EXPORT(DistanceOfFloats);
HWY_EXPORT(DistanceOfDoubles);
HWY_EXPORT(DistanceOfMixed);
HWY_EXPORT(AddFloats);
HWY_EXPORT(AddDoubles);

double squared_norm(const float* x, std::size_t n) {
  return THINWIRE_DISPATCH(NormOfFloats)(x, n);
}
double squared_norm(const double* x, std::size_t n) {
  return THINWIRE_DISPATCH(NormOfDoubles)(x, n);
}
double squared_distance(const float* x, const float* y, std::size_t n) {
  return THINWIRE_DISPATCH(DistanceOfFloats)(x, y, n);
}
double squared_distance(const double* x, const double* y, std::size_t n) {
  return THINWIRE_DISPATCH(DistanceOfDoubles)(x, y, n);
}
double squared_distance(const float* x, const double* y, std::size_t n) {
  return THINWIRE_DISPATCH(DistanceOfMixed)(x, y, n);
}
void add_row(const float* x, double* sums, std::size_t n) {
  THINWIRE_DISPATCH(AddFloats)(x, sums, n);
}
void add_row(const double* x, double* sums, std::size_t n) {
  THINWIRE_DISPATCH(AddDoubles)(x, sums, n);
}

}  // namespace thinwire::lsh
#endif  // HWY_ONCE
