// From a dense delta to a ternary one: keep the largest magnitudes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "thinwire/compressors/peft/magnitude_curve.h"
#include "thinwire/compressors/peft/ternary_planes.h"

namespace thinwire::peft {

// What a selection found; all sums in float64, in order of the entries.
struct DeltaStatistics {
  std::int64_t numel = 0;
  std::int64_t kept = 0;
  double standard_deviation = 0;  // unbiased, of all entries; 0 for fewer than two
  double squared_norm = 0;        // of all entries
  double mean_kept = 0;           // mean magnitude of the kept ones
  float threshold = 0;            // smallest kept magnitude
  // Of each piece: entries that are not zero, and those of them that were kept.
  std::vector<std::int64_t> nonzero_of_piece, kept_of_piece;

  // |x - scale * kept signs|^2 / |x|^2, 0 for a zero vector.
  double relative_squared_error(double scale) const;
};

// int(density * numel), as Python computes it.
std::int64_t keep_count(double density, std::int64_t numel);

// Sets, in `planes`, exactly min(keep, number of non-zero entries) entries of the pieces: those of
// largest magnitude, on equal magnitudes those that come first. All other entries of the pieces
// become zero; entries outside the pieces stay as they are. Zeros are never kept: they have no
// sign. `curve` is that of the same pieces; it takes one reading more, two where the curve has more
// than MagnitudeCurve::kSorted entries. `progress` is told the entries read since the last call.
DeltaStatistics select_largest(std::span<const DeltaPiece> pieces, const MagnitudeCurve& curve,
                               std::int64_t keep, TernaryPlanes& planes,
                               const std::function<void(std::int64_t)>& progress = {});
// The same with a curve made for it. Throws InvalidArgument as MagnitudeCurve does.
DeltaStatistics select_largest(std::span<const DeltaPiece> pieces, std::int64_t keep,
                               TernaryPlanes& planes,
                               const std::function<void(std::int64_t)>& progress = {});

}  // namespace thinwire::peft
