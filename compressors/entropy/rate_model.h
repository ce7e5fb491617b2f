// What values cost under a step, from the sizes of a sample of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace thinwire::entropy {

// Counts magnitudes in eighths of an octave. Value type.
class MagnitudeCounts {
 public:
  // Of at most about `most` of the values, evenly spaced; not finite ones are left out.
  explicit MagnitudeCounts(std::span<const float> values, std::size_t most = kMost);
  // The same of a sample that was taken elsewhere, every stride(numel)-th of so many values.
  static MagnitudeCounts of_sample(std::span<const float> sample, std::size_t numel);
  static std::size_t stride(std::size_t numel, std::size_t most = kMost);

  std::size_t numel() const { return numel_; }  // all values, not the sample
  // Estimates for all values, as coded by StepEncoder under one table of their own. Bits are those
  // of the codes alone.
  double bits(double step, double rounding) const;
  double squared_error(double step, double rounding) const;
  double largest() const { return largest_; }

 private:
  static constexpr std::size_t kMost = 16384;

  MagnitudeCounts(std::span<const float> values, std::size_t stride, std::size_t numel);
  double below(double magnitude) const;  // values of the sample

  // A bin is an exponent and the first three bits of a mantissa.
  static constexpr std::size_t kBins = 2048;
  std::array<std::uint32_t, kBins> cumulative_{};  // sampled values below the end of each bin
  std::array<double, kBins> squares_{};            // and the sum of their squares
  std::size_t numel_ = 0, sampled_ = 0;
  double largest_ = 0;
};

// The step with which all classes together take about so many bits, or lose about so much squared
// error; 0 where everything is zero. A power of two to a multiple of 2^-10, searched for to within
// so many octaves; that for bits is the same on all hosts and devices.
float step_for_bits(std::span<const MagnitudeCounts> classes, double bits, double rounding,
                    double octaves = 0x1p-11);
float step_for_error(std::span<const MagnitudeCounts> classes, double squared_error,
                     double rounding);

}  // namespace thinwire::entropy
