#include "thinwire/comm/backend/mpi/rank_order_reduce.h"

#include <algorithm>
#include <array>
#include <type_traits>

#include <c10/core/ScalarType.h>
#include <c10/util/complex.h>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

using Op = c10d::ReduceOp::RedOpType;

template <typename T>
inline constexpr bool kIsComplex = c10::is_complex<T>::value;
template <typename T>
inline constexpr bool kIsFloating =
    std::is_floating_point_v<T> || std::is_same_v<T, at::Half> || std::is_same_v<T, at::BFloat16>;
template <typename T>
inline constexpr bool kIsInteger = std::is_integral_v<T> && !std::is_same_v<T, bool>;

// Whether `op` means something for elements of type T.
template <typename T>
constexpr bool has_meaning(Op op) {
  switch (op) {
    case Op::SUM:
    case Op::PRODUCT:
      return true;
    case Op::AVG:
    case Op::PREMUL_SUM:
      return kIsFloating<T> || kIsComplex<T>;
    case Op::MIN:
    case Op::MAX:
      return !kIsComplex<T>;
    case Op::BAND:
    case Op::BOR:
    case Op::BXOR:
      return std::is_integral_v<T>;
    default:
      return false;
  }
}

// The type in which elements of type T are accumulated.
template <typename T>
struct Accumulator {
  using type = T;
};
template <>
struct Accumulator<at::Half> {
  using type = float;
};
template <>
struct Accumulator<at::BFloat16> {
  using type = float;
};
template <>
struct Accumulator<c10::complex<at::Half>> {
  using type = c10::complex<float>;
};

template <Op op, typename A>
A combine(A a, A b) {
  if constexpr (std::is_same_v<A, bool>) {
    if constexpr (op == Op::SUM || op == Op::MAX || op == Op::BOR) return a || b;
    if constexpr (op == Op::PRODUCT || op == Op::MIN || op == Op::BAND) return a && b;
    return a != b;
  } else if constexpr (op == Op::SUM || op == Op::PRODUCT) {
    if constexpr (std::is_integral_v<A>) {
      // Unsigned, at least as wide as int: overflow is defined there.
      using U = std::common_type_t<std::make_unsigned_t<A>, unsigned>;
      const U x = static_cast<U>(a), y = static_cast<U>(b);
      return static_cast<A>(op == Op::SUM ? x + y : x * y);
    } else {
      return op == Op::SUM ? a + b : a * b;
    }
  } else if constexpr (op == Op::MIN) {
    return b < a || b != b ? b : a;
  } else if constexpr (op == Op::MAX) {
    return b > a || b != b ? b : a;
  } else if constexpr (op == Op::BAND) {
    return a & b;
  } else if constexpr (op == Op::BOR) {
    return a | b;
  } else {
    return a ^ b;
  }
}

// Block by block, so that the accumulators stay in the nearest cache.
template <Op op, typename T>
void reduce(const std::vector<const void*>& contributions, std::int64_t numel, bool average,
            void* out) {
  using A = typename Accumulator<T>::type;
  constexpr std::int64_t kBlock = 1024;
  std::array<A, kBlock> sum;
  for (std::int64_t begin = 0; begin < numel; begin += kBlock) {
    const auto count = static_cast<std::size_t>(std::min(kBlock, numel - begin));
    const T* first = static_cast<const T*>(contributions[0]) + begin;
    for (std::size_t i = 0; i < count; ++i) sum[i] = static_cast<A>(first[i]);
    for (std::size_t rank = 1; rank < contributions.size(); ++rank) {
      const T* next = static_cast<const T*>(contributions[rank]) + begin;
      for (std::size_t i = 0; i < count; ++i) sum[i] = combine<op>(sum[i], static_cast<A>(next[i]));
    }
    if constexpr (kIsFloating<A> || kIsComplex<A>) {
      if (average) {
        // Real, so that complex numbers are divided part by part and rounded once.
        const auto divisor =
            static_cast<typename c10::scalar_value_type<A>::type>(contributions.size());
        for (std::size_t i = 0; i < count; ++i) sum[i] /= divisor;
      }
    }
    T* result = static_cast<T*>(out) + begin;
    for (std::size_t i = 0; i < count; ++i) result[i] = static_cast<T>(sum[i]);
  }
}

template <typename T>
void reduce(Op op, const std::vector<const void*>& contributions, std::int64_t numel, void* out) {
  switch (op) {
    case Op::SUM:
    case Op::AVG:
    case Op::PREMUL_SUM:
      return reduce<Op::SUM, T>(contributions, numel, op == Op::AVG, out);
    case Op::PRODUCT:
      return reduce<Op::PRODUCT, T>(contributions, numel, false, out);
    case Op::MIN:
      if constexpr (has_meaning<T>(Op::MIN))
        return reduce<Op::MIN, T>(contributions, numel, false, out);
      break;
    case Op::MAX:
      if constexpr (has_meaning<T>(Op::MAX))
        return reduce<Op::MAX, T>(contributions, numel, false, out);
      break;
    case Op::BAND:
      if constexpr (has_meaning<T>(Op::BAND))
        return reduce<Op::BAND, T>(contributions, numel, false, out);
      break;
    case Op::BOR:
      if constexpr (has_meaning<T>(Op::BOR))
        return reduce<Op::BOR, T>(contributions, numel, false, out);
      break;
    case Op::BXOR:
      if constexpr (has_meaning<T>(Op::BXOR))
        return reduce<Op::BXOR, T>(contributions, numel, false, out);
      break;
    default:
      break;
  }
  THINWIRE_ASSERT(false);
}

// Calls visit(T{}) with an element type that can be reduced; returns false for any other.
template <typename Visit>
bool visit_type(at::ScalarType type, const Visit& visit) {
  switch (type) {
    case at::kFloat:
      return visit(float{}), true;
    case at::kDouble:
      return visit(double{}), true;
    case at::kHalf:
      return visit(at::Half{}), true;
    case at::kBFloat16:
      return visit(at::BFloat16{}), true;
    case at::kComplexHalf:
      return visit(c10::complex<at::Half>{}), true;
    case at::kComplexFloat:
      return visit(c10::complex<float>{}), true;
    case at::kComplexDouble:
      return visit(c10::complex<double>{}), true;
    case at::kBool:
      return visit(bool{}), true;
    case at::kByte:
      return visit(std::uint8_t{}), true;
    case at::kChar:
      return visit(std::int8_t{}), true;
    case at::kShort:
      return visit(std::int16_t{}), true;
    case at::kInt:
      return visit(std::int32_t{}), true;
    case at::kLong:
      return visit(std::int64_t{}), true;
    case at::kUInt16:
      return visit(std::uint16_t{}), true;
    case at::kUInt32:
      return visit(std::uint32_t{}), true;
    case at::kUInt64:
      return visit(std::uint64_t{}), true;
    default:
      return false;
  }
}

const char* name_of(Op op) {
  constexpr std::array kNames = {"SUM",  "AVG", "PRODUCT", "MIN",       "MAX",
                                 "BAND", "BOR", "BXOR",    "PREMUL_SUM"};
  return op < kNames.size() ? kNames[op] : "UNUSED";
}

}  // namespace

void check_reducible(const c10d::ReduceOp& op, at::ScalarType type) {
  bool meaning = false;
  const bool known =
      visit_type(type, [&](auto element) { meaning = has_meaning<decltype(element)>(op.op_); });
  check(known, "tensors of ", c10::toString(type), " can be moved but not reduced");
  check(meaning, "the reduction ", name_of(op.op_), " has no meaning for tensors of ",
        c10::toString(type));
}

void reduce_in_rank_order(const c10d::ReduceOp& op, at::ScalarType type,
                          const std::vector<const void*>& contributions, std::int64_t numel,
                          void* out) {
  THINWIRE_ASSERT(!contributions.empty());
  const bool known = visit_type(
      type, [&](auto element) { reduce<decltype(element)>(op.op_, contributions, numel, out); });
  THINWIRE_ASSERT(known);
}

}  // namespace thinwire::comm
