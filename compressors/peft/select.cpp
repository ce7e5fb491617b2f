#include "thinwire/compressors/peft/select.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <numbers>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/float_bits.h"

namespace thinwire::peft {
namespace {

constexpr std::int64_t kReadAtOnce = 16384;
constexpr std::uint32_t kInfinityBits = 0x7F800000u;

std::uint32_t magnitude_bits(float value) {
  return std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFu;
}

// Calls visit(piece, first entry, values) for chunk after chunk of all pieces.
template <typename Visit>
void for_each_chunk(std::span<const DeltaPiece> pieces,
                    const std::function<void(std::int64_t)>& progress, std::int64_t& done,
                    Visit visit) {
  std::array<float, kReadAtOnce> buffer;
  for (const DeltaPiece& piece : pieces) {
    for (std::int64_t begin = 0; begin < piece.tuned.numel; begin += kReadAtOnce) {
      const auto n = static_cast<std::size_t>(std::min(kReadAtOnce, piece.tuned.numel - begin));
      const std::span<float> values(buffer.data(), n);
      load_delta(piece, begin, values);
      visit(piece, begin, std::span<const float>(values));
      done += static_cast<std::int64_t>(n);
      if (progress) progress(done);
    }
  }
}

// The bin that holds the keep-th largest, and how many of that bin are wanted.
std::pair<std::size_t, std::int64_t> find_bin(std::span<const std::int64_t> bins,
                                              std::int64_t keep) {
  for (std::size_t bin = bins.size(); bin-- > 0;) {
    if (bins[bin] >= keep) return {bin, keep};
    keep -= bins[bin];
  }
  throw InternalError("a histogram holds fewer entries than were counted");
}

template <DType kType>
void convert(const std::byte* data, std::int64_t begin, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = detail::load_float(data, begin + static_cast<std::int64_t>(i), kType);
}

void load(const ConstTensorView& view, std::int64_t begin, std::span<float> out) {
  const auto* data = static_cast<const std::byte*>(view.data);
  switch (view.dtype) {
    case DType::kFloat32:
      return convert<DType::kFloat32>(data, begin, out);
    case DType::kFloat16:
      return convert<DType::kFloat16>(data, begin, out);
    case DType::kBFloat16:
      return convert<DType::kBFloat16>(data, begin, out);
    case DType::kFloat64:
      return convert<DType::kFloat64>(data, begin, out);
  }
}

double load_double(const ConstTensorView& view, std::int64_t i) {
  if (view.dtype != DType::kFloat64)
    return detail::load_float(static_cast<const std::byte*>(view.data), i, view.dtype);
  double value;
  std::memcpy(&value, static_cast<const std::byte*>(view.data) + 8 * i, 8);
  return value;
}

}  // namespace

void load_delta(const DeltaPiece& piece, std::int64_t begin, std::span<float> out) {
  const bool has_base = piece.base.data != nullptr;
  if (piece.tuned.dtype == DType::kFloat64 || (has_base && piece.base.dtype == DType::kFloat64)) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      const auto at = begin + static_cast<std::int64_t>(i);
      const double base = has_base ? load_double(piece.base, at) : piece.base_constant;
      out[i] = static_cast<float>(load_double(piece.tuned, at) - base);
    }
    return;
  }
  load(piece.tuned, begin, out);
  if (has_base) {
    std::array<float, 1024> base;
    for (std::size_t first = 0; first < out.size(); first += base.size()) {
      const auto n = std::min(base.size(), out.size() - first);
      load(piece.base, begin + static_cast<std::int64_t>(first), std::span(base).first(n));
      for (std::size_t i = 0; i < n; ++i) out[first + i] -= base[i];
    }
  } else if (piece.base_constant != 0.0f) {
    for (float& value : out) value -= piece.base_constant;
  }
}

double DeltaStatistics::relative_squared_error(double scale) const {
  if (squared_norm == 0) return 0;
  const auto n = static_cast<double>(kept);
  return (squared_norm - 2 * scale * n * mean_kept + n * scale * scale) / squared_norm;
}

std::int64_t keep_count(double density, std::int64_t numel) {
  check(density > 0 && density <= 1, "density must be in (0, 1], got ", density);
  return static_cast<std::int64_t>(density * static_cast<double>(numel));
}

DeltaStatistics select_largest(std::span<const DeltaPiece> pieces, std::int64_t keep,
                               TernaryPlanes& planes,
                               const std::function<void(std::int64_t)>& progress) {
  DeltaStatistics result;
  std::int64_t done = 0;
  for (const DeltaPiece& piece : pieces) {
    check(piece.base.data == nullptr || piece.base.numel == piece.tuned.numel, piece.name,
          ": tuned has ", piece.tuned.numel, " entries, base ", piece.base.numel);
    check(piece.offset >= 0 && piece.tuned.numel <= planes.numel() - piece.offset, piece.name,
          ": entries [", piece.offset, ", ", piece.offset + piece.tuned.numel,
          ") do not fit into planes of ", planes.numel());
    result.numel += piece.tuned.numel;
  }
  check(keep >= 0 && keep <= result.numel, "keep must be in [0, ", result.numel, "], got ", keep);

  // First digit of the radix select: sign-free bits 30..16 of the float.
  std::vector<std::int64_t> high(1u << 15, 0);
  std::int64_t zeros = 0;
  double sum = 0;
  for_each_chunk(pieces, progress, done,
                 [&](const DeltaPiece& piece, std::int64_t begin, std::span<const float> values) {
                   for (std::size_t i = 0; i < values.size(); ++i) {
                     const std::uint32_t bits = magnitude_bits(values[i]);
                     check(bits < kInfinityBits, "the delta of ", piece.name, " is not finite at ",
                           begin + static_cast<std::int64_t>(i));
                     ++high[bits >> 16];
                     zeros += bits == 0;
                     sum += values[i];
                     result.squared_norm += static_cast<double>(values[i]) * values[i];
                   }
                 });
  result.kept = std::min(keep, result.numel - zeros);
  const double mean = result.numel > 0 ? sum / static_cast<double>(result.numel) : 0;

  std::uint32_t prefix = 1u << 15;  // above every bin: keep nothing
  std::int64_t wanted = 0;
  if (result.kept > 0) {
    const auto [bin, rest] = find_bin(high, result.kept);
    prefix = static_cast<std::uint32_t>(bin);
    wanted = rest;
  }

  // Second digit among those that share the first, and the second moment about the mean.
  std::vector<std::int64_t> low(1u << 16, 0);
  double squares = 0;
  for_each_chunk(pieces, progress, done,
                 [&](const DeltaPiece&, std::int64_t, std::span<const float> values) {
                   for (const float value : values) {
                     const std::uint32_t bits = magnitude_bits(value);
                     if (bits >> 16 == prefix) ++low[bits & 0xFFFFu];
                     const double centred = value - mean;
                     squares += centred * centred;
                   }
                 });
  if (result.numel > 1)
    result.standard_deviation = std::sqrt(squares / static_cast<double>(result.numel - 1));
  std::uint32_t threshold = prefix << 16;
  std::int64_t equal_wanted = 0;
  if (result.kept > 0) {
    const auto [bin, rest] = find_bin(low, wanted);
    threshold |= static_cast<std::uint32_t>(bin);
    equal_wanted = rest;
    result.threshold = std::bit_cast<float>(threshold);
  }

  double kept_sum = 0;
  for_each_chunk(pieces, progress, done,
                 [&](const DeltaPiece& piece, std::int64_t begin, std::span<const float> values) {
                   const auto first = static_cast<std::uint64_t>(piece.offset + begin);
                   for (std::size_t i = 0; i < values.size();) {
                     const std::uint64_t at = first + i;
                     const auto shift = static_cast<unsigned>(at % 64);
                     const std::size_t n = std::min<std::size_t>(64 - shift, values.size() - i);
                     std::uint64_t mask = 0, sign = 0;
                     for (std::size_t j = 0; j < n; ++j) {
                       const float value = values[i + j];
                       const std::uint32_t bits = magnitude_bits(value);
                       if (bits < threshold) continue;
                       if (bits == threshold && equal_wanted-- <= 0) continue;
                       kept_sum += std::fabs(static_cast<double>(value));
                       mask |= std::uint64_t{1} << (shift + j);
                       sign |= static_cast<std::uint64_t>(std::signbit(value)) << (shift + j);
                     }
                     const std::uint64_t range = (~std::uint64_t{0} >> (64 - n)) << shift;
                     auto& mask_word = planes.mask()[at / 64];
                     auto& sign_word = planes.sign()[at / 64];
                     mask_word = (mask_word & ~range) | mask;
                     sign_word = (sign_word & ~range) | sign;
                     i += n;
                   }
                 });
  if (result.kept > 0) result.mean_kept = kept_sum / static_cast<double>(result.kept);
  return result;
}

ScaleRule ScaleRule::parse(const std::string& text) {
  if (text == "mean") return {};
  constexpr std::string_view kPrefix = "std:";
  double alpha = 0;
  if (text.starts_with(kPrefix)) {
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + kPrefix.size(), end, alpha);
    if (error == std::errc() && stop == end && std::isfinite(alpha) && alpha > 0) return {alpha};
  }
  throw InvalidArgument(
      concat("scale must be 'mean' or 'std:ALPHA' with a positive ALPHA, got '", text, "'"));
}

std::string ScaleRule::str() const {
  return alpha ? concat("std:", *alpha) : "mean";
}

double ScaleRule::scale(const DeltaStatistics& statistics) const {
  return alpha ? *alpha * statistics.standard_deviation : statistics.mean_kept;
}

std::string ScaleRule::repeat_warning(const DeltaStatistics& statistics) const {
  if (!alpha || statistics.kept == 0 || statistics.standard_deviation == 0) return "";
  return peft::repeat_warning(*alpha, statistics.mean_kept / statistics.standard_deviation);
}

double gaussian_mean_kept(double density) {
  check(density > 0 && density <= 1, "density must be in (0, 1], got ", density);
  // P(|x| > z) = erfc(z / sqrt(2)) falls with z; 60 halvings of [0, 40] settle every bit.
  double low = 0, high = 40;
  for (int i = 0; i < 60; ++i) {
    const double z = (low + high) / 2;
    (std::erfc(z / std::numbers::sqrt2) > density ? low : high) = z;
  }
  const double pdf = std::exp(-low * low / 2) / std::sqrt(2 * std::numbers::pi);
  return 2 * pdf / density;
}

std::string repeat_warning(double alpha, double m) {
  if (alpha >= 2 * m)
    return concat(
        "alpha = ", alpha, " is at least twice mean|kept|/std = ", m,
        ": each compression makes the error larger than the delta, so a repeated exchange "
        "diverges; use the scale 'mean' there");
  constexpr double kUnstable = 4;
  if (alpha >= kUnstable)
    return concat("alpha = ", alpha, " is at least ", kUnstable,
                  ": one compression contracts, but under error feedback the residual never "
                  "settles and a repeated exchange diverges; use the scale 'mean' there");
  return "";
}

}  // namespace thinwire::peft
