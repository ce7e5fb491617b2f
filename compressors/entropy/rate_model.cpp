#include "thinwire/compressors/entropy/rate_model.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "thinwire/compressors/entropy/fixed_log.h"
#include "thinwire/compressors/entropy/symbol_table.h"

namespace thinwire::entropy {
namespace {

constexpr int kMantissaShift = 20;  // leaves three bits of a float's mantissa
// Magnitudes that are told apart; what is beyond takes the bits of an exponential tail.
constexpr int kMagnitudes = 48;
// What counts are multiplied by, so that parts of a bin are whole numbers.
constexpr double kPartsOfOne = 256;

float bin_begin(std::size_t bin) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bin) << kMantissaShift);
}

// The largest step, of those between `low` and `high` octaves, at which value(step) ≤ target where
// value falls, or the largest at which it is still not above the target where it rises.
template <typename Value>
float bisect(double smallest, double largest, bool rises, double target, double octaves,
             const Value& value) {
  double low = log2_of(smallest), high = log2_of(largest);
  while (high - low > octaves) {
    const double middle = (low + high) / 2;
    const bool coarser = rises ? value(exp2_of(middle)) <= target : value(exp2_of(middle)) > target;
    (coarser ? low : high) = middle;
  }
  return static_cast<float>(exp2_of(std::round((rises ? low : high) * 1024) / 1024));
}

double largest_of(std::span<const MagnitudeCounts> classes) {
  double largest = 0;
  for (const MagnitudeCounts& counts : classes) largest = std::max(largest, counts.largest());
  return largest;
}

}  // namespace

std::size_t MagnitudeCounts::stride(std::size_t numel, std::size_t most) {
  return std::max<std::size_t>(1, numel / most);
}

MagnitudeCounts MagnitudeCounts::of_sample(std::span<const float> sample, std::size_t numel) {
  return {sample, 1, numel};
}

MagnitudeCounts::MagnitudeCounts(std::span<const float> values, std::size_t most)
    : MagnitudeCounts(values, stride(values.size(), most), values.size()) {}

MagnitudeCounts::MagnitudeCounts(std::span<const float> values, std::size_t stride,
                                 std::size_t numel)
    : numel_(numel) {
  static_assert(kBins == std::size_t{1} << (31 - kMantissaShift));
  for (std::size_t i = 0; i < values.size(); i += stride) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFu;
    if (bits > 0x7F7FFFFFu) continue;
    const double magnitude = std::bit_cast<float>(bits);
    ++cumulative_[bits >> kMantissaShift];
    squares_[bits >> kMantissaShift] += magnitude * magnitude;
    largest_ = std::max(largest_, magnitude);
    ++sampled_;
  }
  for (std::size_t b = 1; b < kBins; ++b) {
    cumulative_[b] += cumulative_[b - 1];
    squares_[b] += squares_[b - 1];
  }
}

double MagnitudeCounts::below(double magnitude) const {
  const auto value = static_cast<float>(magnitude);
  const std::size_t bin = std::bit_cast<std::uint32_t>(value) >> kMantissaShift;
  if (bin >= kBins - 8) return sampled_;
  const double before = bin > 0 ? cumulative_[bin - 1] : 0;
  const double begin = bin_begin(bin);
  const double share = (magnitude - begin) / (static_cast<double>(bin_begin(bin + 1)) - begin);
  return before + share * (cumulative_[bin] - before);
}

double MagnitudeCounts::bits(double step, double rounding) const {
  if (sampled_ == 0) return 0;
  const auto below_level = [&](int level) {
    return static_cast<std::uint64_t>(kPartsOfOne * below((level - rounding) * step) + 0.5);
  };
  const auto all = static_cast<std::uint64_t>(kPartsOfOne) * sampled_;
  std::uint64_t before = below_level(1);
  // What all of them take but for what they are of each magnitude, and a sign each.
  FixedBits sum =
      n_log2_n(all) - n_log2_n(before) + static_cast<FixedBits>(all - before) * kFixedBit;
  for (int m = 1; m < kMagnitudes && before < all; ++m) {
    const std::uint64_t next = below_level(m + 1);
    sum -= n_log2_n(next - before);
    before = next;
  }
  double bits = static_cast<double>(sum) / kFixedBit;
  if (before < all) {
    const std::uint64_t beyond = all - before;
    const double octaves = std::max(1.0, log2_of(largest_ / (kMagnitudes * step)));
    bits += static_cast<double>(beyond) * (log2_of(kMagnitudes) + octaves) -
            static_cast<double>(n_log2_n(beyond)) / kFixedBit;
  }
  return bits / kPartsOfOne * static_cast<double>(numel_) / static_cast<double>(sampled_);
}

double MagnitudeCounts::squared_error(double step, double rounding) const {
  if (sampled_ == 0) return 0;
  const double edge = (1 - rounding) * step;
  const double zeros = below(edge);
  const std::size_t bin = std::bit_cast<std::uint32_t>(static_cast<float>(edge)) >> kMantissaShift;
  const double lower = bin > 0 ? squares_[bin - 1] : 0;
  const double inside = bin > 0 ? cumulative_[bin - 1] : 0;
  const double of_zeros = lower + (zeros - inside) * edge * edge;
  const double of_others = (static_cast<double>(sampled_) - zeros) * step * step / 12;
  return (of_zeros + of_others) * static_cast<double>(numel_) / static_cast<double>(sampled_);
}

float step_for_bits(std::span<const MagnitudeCounts> classes, double bits, double rounding,
                    double octaves) {
  const double largest = largest_of(classes);
  if (largest < 1e-28) return 0;
  return bisect(std::max(largest * 0x1p-21, 1e-29), largest * 4, /*rises=*/false, bits, octaves,
                [&](double step) {
                  double sum = 0;
                  for (const MagnitudeCounts& counts : classes) sum += counts.bits(step, rounding);
                  return sum;
                });
}

float step_for_error(std::span<const MagnitudeCounts> classes, double squared_error,
                     double rounding) {
  const double largest = largest_of(classes);
  if (largest < 1e-28) return 0;
  return bisect(std::max(largest * 0x1p-21, 1e-29), largest * 4, /*rises=*/true, squared_error,
                0x1p-11, [&](double step) {
                  double sum = 0;
                  for (const MagnitudeCounts& counts : classes) {
                    sum += counts.squared_error(step, rounding);
                  }
                  return sum;
                });
}

}  // namespace thinwire::entropy
