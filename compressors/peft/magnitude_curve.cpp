#include "thinwire/compressors/peft/magnitude_curve.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "thinwire/common/error.h"

namespace thinwire::peft {
namespace {

constexpr std::uint32_t kInfinityBits = 0x7F800000u;
constexpr unsigned kLowBits = 16;  // of a float, which a bin does not tell apart

// Mean and sum of squared distances from it, of chunk after chunk: Chan, Golub and LeVeque,
// "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
class Moments {
 public:
  void add(std::span<const float> values) {
    double sum = 0, squares = 0;
    for (const float value : values) sum += value;
    const auto n = static_cast<double>(values.size());
    const double mean = sum / n;
    for (const float value : values) squares += (value - mean) * (value - mean);
    const double apart = mean - mean_, total = count_ + n;
    squares_ += squares + apart * apart * count_ * n / total;
    mean_ += apart * n / total;
    count_ = total;
  }
  double standard_deviation() const {
    return count_ > 1 ? std::sqrt(squares_ / (count_ - 1)) : 0.0;
  }

 private:
  double count_ = 0, mean_ = 0, squares_ = 0;
};

}  // namespace

MagnitudeCurve::MagnitudeCurve(std::span<const DeltaPiece> pieces,
                               const std::function<void(std::int64_t)>& progress)
    : nonzero_of_piece_(pieces.size(), 0) {
  for (const DeltaPiece& piece : pieces) numel_ += piece.tuned.numel;
  exact_ = numel_ <= kSorted;
  // Few magnitudes are sorted, many are counted by their leading bits.
  std::vector<std::uint32_t> sorted;
  std::vector<std::int64_t> counts(exact_ ? 0 : 1u << (31 - kLowBits), 0);
  std::vector<double> sums(counts.size(), 0);
  Moments moments;
  detail::for_each_chunk(
      pieces, progress, [&](std::size_t p, std::int64_t begin, std::span<const float> values) {
        moments.add(values);
        for (std::size_t i = 0; i < values.size(); ++i) {
          const std::uint32_t bits = std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFu;
          check(bits < kInfinityBits, "the delta of ", pieces[p].name, " is not finite at ",
                begin + static_cast<std::int64_t>(i));
          if (bits == 0) continue;
          ++nonzero_of_piece_[p];
          const double magnitude = std::bit_cast<float>(bits);
          squared_norm_ += magnitude * magnitude;
          if (exact_) {
            sorted.push_back(bits);
          } else {
            ++counts[bits >> kLowBits];
            sums[bits >> kLowBits] += magnitude;
          }
        }
      });
  standard_deviation_ = moments.standard_deviation();

  const auto add = [&](std::uint32_t bits, std::int64_t count, double sum) {
    const Bin above = bins_.empty() ? Bin{} : bins_.back();
    bins_.push_back({bits, above.count_from_here + count, above.sum_from_here + sum});
  };
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  for (std::size_t i = 0; i < sorted.size();) {
    std::size_t end = i;
    while (end < sorted.size() && sorted[end] == sorted[i]) ++end;
    const auto n = static_cast<std::int64_t>(end - i);
    add(sorted[i], n, static_cast<double>(n) * std::bit_cast<float>(sorted[i]));
    i = end;
  }
  for (std::size_t bin = counts.size(); bin-- > 0;)
    if (counts[bin] > 0) add(static_cast<std::uint32_t>(bin) << kLowBits, counts[bin], sums[bin]);
  std::reverse(bins_.begin(), bins_.end());
  bins_.shrink_to_fit();
}

const MagnitudeCurve::Bin& MagnitudeCurve::bin_of(std::int64_t keep) const {
  THINWIRE_ASSERT(keep >= 1 && keep <= nonzero());
  // The last bin that has at least so many entries from there on.
  const auto after = std::partition_point(
      bins_.begin(), bins_.end(), [&](const Bin& bin) { return bin.count_from_here >= keep; });
  return *std::prev(after);
}

MagnitudeCurve::Place MagnitudeCurve::place_of(std::int64_t keep) const {
  const Bin& bin = bin_of(keep);
  const bool last = &bin == &bins_.back();
  return {bin.bits, keep - (last ? 0 : (&bin + 1)->count_from_here), exact_};
}

double MagnitudeCurve::squared_error(std::int64_t keep, const ScaleRule& rule) const {
  keep = std::min(keep, nonzero());
  if (keep <= 0) return squared_norm_;
  const Bin& bin = bin_of(keep);
  const Bin above = &bin == &bins_.back() ? Bin{} : *(&bin + 1);
  // The largest of a bin have at least its mean.
  const double mean_of_bin = (bin.sum_from_here - above.sum_from_here) /
                             static_cast<double>(bin.count_from_here - above.count_from_here);
  const double sum =
      above.sum_from_here + mean_of_bin * static_cast<double>(keep - above.count_from_here);
  const auto n = static_cast<double>(keep);
  const double scale = rule.scale(sum / n, standard_deviation_);
  return std::max(0.0, squared_norm_ - 2 * scale * sum + n * scale * scale);
}

}  // namespace thinwire::peft
