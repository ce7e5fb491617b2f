#include "thinwire/compressors/peft/select.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "thinwire/common/error.h"

namespace thinwire::peft {
namespace {

using Chunk = std::span<const float>;

std::uint32_t magnitude_bits(float value) {
  return std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFu;
}

void check_places(std::span<const DeltaPiece> pieces, std::int64_t entries) {
  for (const DeltaPiece& piece : pieces) {
    check(piece.base.data == nullptr || piece.base.numel == piece.tuned.numel, piece.name,
          ": tuned has ", piece.tuned.numel, " entries, base ", piece.base.numel);
    check(piece.offset >= 0 && piece.tuned.numel <= entries - piece.offset, piece.name,
          ": entries [", piece.offset, ", ", piece.offset + piece.tuned.numel,
          ") do not fit into planes of ", entries);
  }
}

// The last 16 bits of the threshold, from a histogram of those that share the first ones; and how
// many entries that are equal to it are wanted.
MagnitudeCurve::Place refined(std::span<const DeltaPiece> pieces, MagnitudeCurve::Place place,
                              const std::function<void(std::int64_t)>& progress) {
  std::vector<std::int64_t> low(1u << 16, 0);
  detail::for_each_chunk(pieces, progress, [&](std::size_t, std::int64_t, Chunk values) {
    for (const float value : values) {
      const std::uint32_t bits = magnitude_bits(value);
      if (bits >> 16 == place.bits >> 16) ++low[bits & 0xFFFFu];
    }
  });
  for (std::size_t digit = low.size(); digit-- > 0;) {
    if (low[digit] >= place.wanted)
      return {place.bits | static_cast<std::uint32_t>(digit), place.wanted, true};
    place.wanted -= low[digit];
  }
  throw InternalError("a bin holds fewer entries than were counted");
}

}  // namespace

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
  check_places(pieces, planes.numel());
  return select_largest(pieces, MagnitudeCurve(pieces, progress), keep, planes, progress);
}

DeltaStatistics select_largest(std::span<const DeltaPiece> pieces, const MagnitudeCurve& curve,
                               std::int64_t keep, TernaryPlanes& planes,
                               const std::function<void(std::int64_t)>& progress) {
  check_places(pieces, planes.numel());
  check(keep >= 0 && keep <= curve.numel(), "keep must be in [0, ", curve.numel(), "], got ", keep);
  DeltaStatistics result;
  result.numel = curve.numel();
  result.kept = std::min(keep, curve.nonzero());
  result.squared_norm = curve.squared_norm();
  result.standard_deviation = curve.standard_deviation();
  result.nonzero_of_piece.assign(curve.nonzero_of_piece().begin(), curve.nonzero_of_piece().end());
  result.kept_of_piece.assign(pieces.size(), 0);

  std::uint32_t threshold = 1u << 31;  // above every magnitude: keep nothing
  std::int64_t equal_wanted = 0;
  if (result.kept > 0) {
    MagnitudeCurve::Place place = curve.place_of(result.kept);
    if (!place.exact) place = refined(pieces, place, progress);
    threshold = place.bits;
    equal_wanted = place.wanted;
    result.threshold = std::bit_cast<float>(threshold);
  }

  double kept_sum = 0;
  detail::for_each_chunk(
      pieces, progress, [&](std::size_t piece, std::int64_t begin, Chunk values) {
        const auto first = static_cast<std::uint64_t>(pieces[piece].offset + begin);
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
          result.kept_of_piece[piece] += std::popcount(mask);
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

}  // namespace thinwire::peft
