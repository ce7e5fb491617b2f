// From a dense delta to a ternary one: keep the largest magnitudes, find the scale.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "thinwire/compressors/peft/ternary_planes.h"

namespace thinwire::peft {

// A run of consecutive entries of the concatenated vector: tuned - base, computed in float32 (in
// float64 first where a tensor is float64). The memory may be unaligned, and it is read several
// times, a block at a time: a mapped file never needs to be in memory as a whole.
struct DeltaPiece {
  ConstTensorView tuned;
  ConstTensorView base;        // data null: the base is `base_constant` everywhere
  float base_constant = 0.0f;  // 0 for LoRA's factors, 1 for IA3's vectors
  std::int64_t offset = 0;     // of the first entry in the concatenated vector
  std::string name;            // for messages
};

// Writes entries [begin, begin + out.size()) of the piece's delta.
void load_delta(const DeltaPiece& piece, std::int64_t begin, std::span<float> out);

// What a selection found; all sums in float64, in order of the entries.
struct DeltaStatistics {
  std::int64_t numel = 0;
  std::int64_t kept = 0;
  double standard_deviation = 0;  // unbiased, of all entries; 0 for fewer than two
  double squared_norm = 0;        // of all entries
  double mean_kept = 0;           // mean magnitude of the kept ones
  float threshold = 0;            // smallest kept magnitude

  // |x - scale * kept signs|^2 / |x|^2, 0 for a zero vector.
  double relative_squared_error(double scale) const;
};

// int(density * numel), as Python computes it.
std::int64_t keep_count(double density, std::int64_t numel);

// Sets, in `planes`, exactly min(keep, number of non-zero entries) entries of the pieces: those of
// largest magnitude, on equal magnitudes those that come first. All other entries of the pieces
// become zero; entries outside the pieces stay as they are. Zeros are never kept: they have no
// sign. Two passes of 32 Ki and 64 Ki counters find the threshold, nothing is sorted and no dense
// copy is made. Throws InvalidArgument, naming piece and entry, for NaN or infinity.
// `progress` is told the entries read so far out of three times numel.
DeltaStatistics select_largest(std::span<const DeltaPiece> pieces, std::int64_t keep,
                               TernaryPlanes& planes,
                               const std::function<void(std::int64_t)>& progress = {});

// mean |kept| over the standard deviation for Gaussian entries of mean 0: 2 phi(z) / k, z the
// (1 - k/2) quantile; 2.338 at k = 5 %. Throws InvalidArgument for a density outside (0, 1].
double gaussian_mean_kept(double density);

// Why a scale of alpha standard deviations would diverge if deltas were compressed again and again
// with error feedback, or "" where it would not; m = mean |kept| / std. An alpha of at least 2 m
// does not even contract once (relative error^2 = 1 - 2 k alpha m + k alpha^2 >= 1), and from 4 on
// the residual never settles.
std::string repeat_warning(double alpha, double m);

// The magnitude that stands for every kept entry.
struct ScaleRule {
  // nullopt: mean |kept|, which contracts at any density; a number: alpha times the standard
  // deviation, the paper's rule for one-shot files.
  std::optional<double> alpha;

  // `mean` or `std:ALPHA`; InvalidArgument for anything else and for an alpha that is not positive.
  static ScaleRule parse(const std::string& text);
  std::string str() const;
  double scale(const DeltaStatistics& statistics) const;
  // repeat_warning() of this scale for a delta; "" for the mean.
  std::string repeat_warning(const DeltaStatistics& statistics) const;
};

}  // namespace thinwire::peft
