// What keeping the largest entries would give, for every number of them, from one reading.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "thinwire/compressors/peft/delta_piece.h"
#include "thinwire/compressors/peft/scale_rule.h"

namespace thinwire::peft {

// A histogram of the magnitudes of some pieces that share a threshold: from it follow, without
// reading the entries again, how many are kept and with which error at any density. Nothing is
// sorted and no dense copy is made of more than kSorted entries. Immutable, thread-safe to read.
class MagnitudeCurve {
 public:
  // Throws InvalidArgument, naming piece and entry, for NaN or infinity. `progress` is told the
  // entries read since it was called last.
  explicit MagnitudeCurve(std::span<const DeltaPiece> pieces,
                          const std::function<void(std::int64_t)>& progress = {});

  std::int64_t numel() const { return numel_; }
  std::int64_t nonzero() const { return bins_.empty() ? 0 : bins_.front().count_from_here; }
  double squared_norm() const { return squared_norm_; }
  // Unbiased, of all entries; 0 for fewer than two.
  double standard_deviation() const { return standard_deviation_; }
  // Entries of each piece that are not zero.
  std::span<const std::int64_t> nonzero_of_piece() const { return nonzero_of_piece_; }

  // |x - scale * kept signs|^2 where the `keep` largest are kept (fewer, where there are not so
  // many that are not zero): never less than it is, and more by no more than the width of a bin
  // makes, about 1 % of what the entries in the last bin lose.
  double squared_error(std::int64_t keep, const ScaleRule& rule) const;

  // Where the keep-th largest magnitude is: the float bits that all magnitudes of its bin begin
  // with, below a mask of 16 bits unless `exact`, and how many of the bin are wanted.
  struct Place {
    std::uint32_t bits = 0;
    std::int64_t wanted = 0;
    bool exact = false;
  };
  Place place_of(std::int64_t keep) const;  // keep in [1, nonzero()]

  // Up to so many entries every magnitude has a bin of its own.
  static constexpr std::int64_t kSorted = 1 << 15;

 private:
  struct Bin {
    std::uint32_t bits;            // of its smallest magnitude
    std::int64_t count_from_here;  // entries of this and all larger bins
    double sum_from_here;          // and their magnitudes
  };
  const Bin& bin_of(std::int64_t keep) const;

  std::vector<Bin> bins_;  // in order of the magnitudes, none for zero
  std::vector<std::int64_t> nonzero_of_piece_;
  bool exact_ = false;
  std::int64_t numel_ = 0;
  double squared_norm_ = 0, standard_deviation_ = 0;
};

}  // namespace thinwire::peft
