// What symbols take under a table or a model of their own, in integers that the CPU and the CUDA
// kernels share: who encodes decides by them which parts share a table, and whether a model does
// better (step_coder.h).
#pragma once

#include <cstdint>

#include "thinwire/compressors/entropy/fixed_log.h"
#include "thinwire/compressors/entropy/table_math.h"

namespace thinwire::entropy {

inline constexpr FixedBits kFixedByte = 8 * kFixedBit;
// Bytes of a table's centroids, and of a model's one.
inline constexpr FixedBits kTableCentroidBytes = 3, kModelCentroidBytes = 1;
// The byte of a centroid at the multiple itself.
inline constexpr std::uint8_t kNoCentroid = 128;

// A magnitude is zero with odds of `zeros`, and one that is m or more is above m with odds of
// `decay`; both are values of weights (symbol_table.h) over 256. No magnitude is above `last`.
// Signs are even, and the two codes of a pair independent. Bytes as they travel.
struct CodeModel {
  std::uint8_t zeros = 0, decay = 0, last = 0;
};

// How often magnitudes occur.
struct MagnitudeTotals {
  std::uint64_t zeros = 0, others = 0;
  std::uint64_t above = 0;    // the sum of m − 1 over the others
  std::uint64_t at_last = 0;  // of the largest magnitude
  int last = 0;               // 0: there are no others
};

// n · log2 n with the logarithm of fixed_log2(); 0 for 0.
struct CountLog {
  THINWIRE_HOST_DEVICE FixedBits operator()(std::uint64_t count) const {
    return count == 0 ? 0 : static_cast<FixedBits>(count) * fixed_log2(count);
  }
};

// Of kMaxSymbols counts: of codes below 31, or of pairs of codes below 5 (dead_zone.h).
THINWIRE_HOST_DEVICE MagnitudeTotals totals_of_counts(const std::uint32_t* counts, bool pairs) {
  MagnitudeTotals totals;
  const int most = pairs ? 2 : 15;
  // Of pairs what lies in a row or a column of five.
  const auto occurs = [&](int code) {
    if (!pairs) return std::uint64_t{counts[code]};
    std::uint64_t sum = 0;
    for (int other = 0; other < kCodesOfPairs; ++other) {
      sum += std::uint64_t{counts[kCodesOfPairs * code + other]} +
             counts[kCodesOfPairs * other + code];
    }
    return sum;
  };
  totals.zeros = occurs(0);
  for (int m = 1; m <= most; ++m) {
    const std::uint64_t count = occurs(2 * m - 1) + occurs(2 * m);
    if (count == 0) continue;
    totals.others += count;
    totals.above += static_cast<std::uint64_t>(m - 1) * count;
    totals.at_last = count;
    totals.last = m;
  }
  return totals;
}

// Of the codes under their best model, nearly. `log` as CountLog.
template <typename Log>
THINWIRE_HOST_DEVICE FixedBits bits_of_magnitudes(const MagnitudeTotals& totals, const Log& log) {
  // Of telling apart events of two kinds.
  const auto of_two = [&log](std::uint64_t a, std::uint64_t b) {
    return log(a + b) - log(a) - log(b);
  };
  return of_two(totals.zeros, totals.others) + static_cast<FixedBits>(totals.others) * kFixedBit +
         of_two(totals.above, totals.others - totals.at_last);
}

THINWIRE_HOST_DEVICE std::uint8_t odds_of(std::uint64_t a, std::uint64_t b) {
  return nearest_weight(b > 0 ? (kOdds * a + b / 2) / b : ~std::uint64_t{0});
}

THINWIRE_HOST_DEVICE CodeModel model_of(const MagnitudeTotals& totals) {
  return {odds_of(totals.zeros, totals.others),
          odds_of(totals.above, totals.others - totals.at_last),
          static_cast<std::uint8_t>(totals.last)};
}

// Bits of symbols under the table of their own counts, and of the table. term(s) is the log of
// counts[s].
template <typename Term, typename Log>
THINWIRE_HOST_DEVICE FixedBits bits_of_counts(const std::uint32_t* counts, const Term& term,
                                              const Log& log) {
  std::uint64_t total = 0;
  FixedBits sum = 0;
  int last = 0;
  for (int s = 0; s < kMaxSymbols; ++s) {
    if (counts[s] == 0) continue;
    total += counts[s];
    sum += term(s);
    last = s + 1;
  }
  if (total == 0) return 0;
  return log(total) - sum + kFixedByte * (1 + last + kTableCentroidBytes);
}

// What counts take with what is dearer left: `model.last` is 0 where that is a table.
struct CountsPrice {
  FixedBits bits = 0;
  CodeModel model = {};
};
template <typename Term, typename Log>
THINWIRE_HOST_DEVICE CountsPrice price_of_counts(const std::uint32_t* counts, bool pairs,
                                                 const Term& term, const Log& log) {
  constexpr FixedBits kModelBits =
      kFixedByte * (static_cast<FixedBits>(sizeof(CodeModel)) + kModelCentroidBytes);
  const MagnitudeTotals totals = totals_of_counts(counts, pairs);
  const FixedBits table = bits_of_counts(counts, term, log);
  const FixedBits modelled = bits_of_magnitudes(totals, log) + kModelBits;
  if (modelled < table) return {modelled, model_of(totals)};
  return {table, {}};
}

// The byte of the centroid of so many elements, whose fractions (dead_zone.h) have that sum.
THINWIRE_HOST_DEVICE std::uint8_t centroid_byte(std::int64_t count, std::int64_t fraction) {
  if (count == 0) return kNoCentroid;
  const std::int64_t byte = kNoCentroid + fraction / count;
  return static_cast<std::uint8_t>(byte < 0 ? 0 : byte > 255 ? 255 : byte);
}

}  // namespace thinwire::entropy
