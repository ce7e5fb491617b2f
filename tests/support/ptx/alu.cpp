#include "thinwire/tests/support/ptx/alu.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>

namespace thinwire::testing::ptx {
namespace {

using Values = std::array<std::uint64_t, 4>;
__extension__ using Wide = __int128;
__extension__ using UnsignedWide = unsigned __int128;

// A value of a type, from the bits of a register.
template <typename Number>
Number number_of(std::uint64_t bits) {
  if constexpr (std::is_same_v<Number, float>) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits));
  } else if constexpr (std::is_same_v<Number, double>) {
    return std::bit_cast<double>(bits);
  } else {
    return static_cast<Number>(bits);
  }
}

std::uint64_t bits_of(float value) {
  return std::bit_cast<std::uint32_t>(value);
}
std::uint64_t bits_of(double value) {
  return std::bit_cast<std::uint64_t>(value);
}

// NaN loses in PTX's min and max, and -0 is less than +0.
template <typename Float>
Float float_min(Float a, Float b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}

template <typename Float>
bool compare(Comparison comparison, Float a, Float b) {
  const bool unordered = std::isnan(a) || std::isnan(b);
  switch (comparison) {
    case Comparison::kEq:
      return a == b;
    case Comparison::kNe:
      return a != b && !unordered;
    case Comparison::kLt:
      return a < b;
    case Comparison::kLe:
      return a <= b;
    case Comparison::kGt:
      return a > b;
    case Comparison::kGe:
      return a >= b;
    case Comparison::kEqu:
      return unordered || a == b;
    case Comparison::kNeu:
      return unordered || a != b;
    case Comparison::kLtu:
      return unordered || a < b;
    case Comparison::kLeu:
      return unordered || a <= b;
    case Comparison::kGtu:
      return unordered || a > b;
    case Comparison::kGeu:
      return unordered || a >= b;
  }
  return false;
}

template <typename Integer>
bool compare_integers(Comparison comparison, Integer a, Integer b) {
  switch (comparison) {
    case Comparison::kEq:
      return a == b;
    case Comparison::kNe:
      return a != b;
    case Comparison::kLt:
      return a < b;
    case Comparison::kLe:
      return a <= b;
    case Comparison::kGt:
      return a > b;
    default:
      return a >= b;
  }
}

template <typename Float>
std::uint64_t float_result(const Instruction& i, const Values& v) {
  const auto a = number_of<Float>(v[0]), b = number_of<Float>(v[1]), c = number_of<Float>(v[2]);
  switch (i.op) {
    case Op::kAdd:
      return bits_of(a + b);
    case Op::kSub:
      return bits_of(a - b);
    case Op::kMul:
      return bits_of(a * b);
    case Op::kFma:
      return bits_of(std::fma(a, b, c));
    case Op::kDiv:
      return bits_of(a / b);
    case Op::kRcp:
      return bits_of(Float{1} / a);
    case Op::kSqrt:
      return bits_of(std::sqrt(a));
    case Op::kNeg:
      return bits_of(-a);
    case Op::kAbs:
      return bits_of(std::fabs(a));
    case Op::kMin:
      return bits_of(float_min(a, b));
    case Op::kMax:
      return bits_of(-float_min(-a, -b));
    case Op::kSetp:
      return compare(i.comparison, a, b) ? 1 : 0;
    default:
      throw std::domain_error("not an operation on floats");
  }
}

std::uint64_t integer_result(const Instruction& i, const Values& v) {
  const std::uint64_t a = v[0], b = v[1], c = v[2];
  const int bits = i.type.kind == Type::Kind::kPredicate ? 1 : i.type.bits;
  const bool is_signed = i.type.kind == Type::Kind::kSigned;
  const std::uint64_t ua = low_bits(a, bits), ub = low_bits(b, bits);
  const std::int64_t sa = sign_extended(a, bits), sb = sign_extended(b, bits);
  const auto product = [&] {
    return is_signed ? static_cast<UnsignedWide>(static_cast<Wide>(sa) * sb)
                     : static_cast<UnsignedWide>(ua) * ub;
  };
  const auto divide = [&](auto x, auto y) {
    if (y == 0) throw std::domain_error("division by zero");
    return static_cast<std::uint64_t>(i.op == Op::kDiv ? x / y : x % y);
  };
  std::uint64_t result = 0;
  int width = bits;
  switch (i.op) {
    case Op::kAdd:
      result = a + b;
      break;
    case Op::kSub:
      result = a - b;
      break;
    case Op::kMul:
      width = i.wide ? 2 * bits : bits;
      result = static_cast<std::uint64_t>(product() >> (i.high ? bits : 0));
      break;
    case Op::kMad:
      width = i.wide ? 2 * bits : bits;
      result = static_cast<std::uint64_t>(product() >> (i.high ? bits : 0)) + c;
      break;
    case Op::kDiv:
    case Op::kRem:
      result = is_signed ? divide(sa, sb) : divide(ua, ub);
      break;
    case Op::kNeg:
      result = 0 - a;
      break;
    case Op::kAbs:
      result = static_cast<std::uint64_t>(sa < 0 ? -sa : sa);
      break;
    case Op::kMin:
      result = is_signed ? static_cast<std::uint64_t>(std::min(sa, sb)) : std::min(ua, ub);
      break;
    case Op::kMax:
      result = is_signed ? static_cast<std::uint64_t>(std::max(sa, sb)) : std::max(ua, ub);
      break;
    case Op::kAnd:
      result = a & b;
      break;
    case Op::kOr:
      result = a | b;
      break;
    case Op::kXor:
      result = a ^ b;
      break;
    case Op::kNot:
      result = ~a;
      break;
    case Op::kShl:
      result = low_bits(b, 32) >= static_cast<std::uint64_t>(bits) ? 0 : a << low_bits(b, 32);
      break;
    case Op::kShr: {
      const auto by = std::min<std::uint64_t>(low_bits(b, 32), 63);
      result = is_signed ? static_cast<std::uint64_t>(sa >> by)
               : low_bits(b, 32) >= static_cast<std::uint64_t>(bits) ? 0
                                                                     : ua >> by;
      break;
    }
    case Op::kShf: {  // of two words: the lower one, the upper one, by how much, modulo 32
      const std::uint64_t both = low_bits(a, 32) | low_bits(b, 32) << 32;
      result = i.to_left ? both << (c & 31) >> 32 : both >> (c & 31);
      break;
    }
    case Op::kPopc:
      return static_cast<std::uint64_t>(std::popcount(ua));
    case Op::kClz:
      return static_cast<std::uint64_t>(std::countl_zero(ua) - (64 - bits));
    case Op::kBfi: {  // sources: bits to insert, target, position, length
      const auto position = low_bits(c, 8), length = low_bits(v[3], 8);
      const std::uint64_t mask =
          position >= static_cast<std::uint64_t>(bits)
              ? 0
              : low_bits(~0ULL, static_cast<int>(std::min<std::uint64_t>(length, 64))) << position;
      result = (b & ~mask) | ((a << std::min<std::uint64_t>(position, 63)) & mask);
      break;
    }
    case Op::kBfe: {
      const auto position = std::min<std::uint64_t>(low_bits(b, 8), 63);
      const auto length = std::min<std::uint64_t>(low_bits(c, 8), 64);
      result = low_bits(ua >> position, static_cast<int>(length));
      if (is_signed && length > 0)
        result = static_cast<std::uint64_t>(sign_extended(result, static_cast<int>(length)));
      break;
    }
    case Op::kPrmt: {
      const std::uint64_t both = low_bits(a, 32) | low_bits(b, 32) << 32;
      for (int n = 0; n < 4; ++n) {
        const auto selector = c >> (4 * n) & 15;
        auto byte = both >> (8 * (selector & 7)) & 255;
        if ((selector & 8) != 0) byte = (byte & 128) != 0 ? 255 : 0;
        result |= byte << (8 * n);
      }
      break;
    }
    case Op::kSetp:
      return (is_signed ? compare_integers(i.comparison, sa, sb)
                        : compare_integers(i.comparison, ua, ub))
                 ? 1
                 : 0;
    default:
      throw std::domain_error("not an operation on integers");
  }
  return low_bits(result, width);
}

// NaN becomes 0, what lies outside the nearest value of the type.
std::uint64_t saturated(Type type, double value) {
  if (std::isnan(value)) return 0;
  const bool is_signed = type.kind == Type::Kind::kSigned;
  const double high = std::ldexp(1.0, type.bits - (is_signed ? 1 : 0));
  const double low = is_signed ? -high : 0;
  if (value <= low) return low_bits(is_signed ? std::uint64_t{1} << (type.bits - 1) : 0, type.bits);
  if (value >= high)
    return low_bits(is_signed ? (std::uint64_t{1} << (type.bits - 1)) - 1 : ~0ULL, type.bits);
  return low_bits(is_signed ? static_cast<std::uint64_t>(static_cast<std::int64_t>(value))
                            : static_cast<std::uint64_t>(value),
                  type.bits);
}

std::uint64_t convert(const Instruction& i, std::uint64_t a) {
  const bool to_float = i.type.kind == Type::Kind::kFloat;
  if (i.from.kind == Type::Kind::kFloat) {
    const double value =
        i.from.bits == 32 ? static_cast<double>(number_of<float>(a)) : number_of<double>(a);
    if (to_float) return i.type.bits == 32 ? bits_of(static_cast<float>(value)) : bits_of(value);
    if (!i.truncates) throw std::domain_error("cvt from float to integer is only known with .rzi");
    return saturated(i.type, value);
  }
  const bool is_signed = i.from.kind == Type::Kind::kSigned;
  const std::int64_t sa = sign_extended(a, i.from.bits);
  const std::uint64_t ua = low_bits(a, i.from.bits);
  if (!to_float) return low_bits(is_signed ? static_cast<std::uint64_t>(sa) : ua, i.type.bits);
  if (i.type.bits == 32)
    return bits_of(is_signed ? static_cast<float>(sa) : static_cast<float>(ua));
  return bits_of(is_signed ? static_cast<double>(sa) : static_cast<double>(ua));
}

}  // namespace

std::uint64_t result_of(const Instruction& i, const Values& values) {
  switch (i.op) {
    case Op::kMov:
      return low_bits(values[0], i.type.bits);
    case Op::kCvt:
      return convert(i, values[0]);
    case Op::kSelp:
      return values[2] != 0 ? values[0] : values[1];
    default:
      break;
  }
  if (i.type.kind != Type::Kind::kFloat) return integer_result(i, values);
  return i.type.bits == 32 ? float_result<float>(i, values) : float_result<double>(i, values);
}

}  // namespace thinwire::testing::ptx
