#include "thinwire/moe/rows/column_classes.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace thinwire::moe {
namespace {

constexpr double kClassesAnOctave = 2;
// Means are multiples of this part of the column's scale, and scales large enough for that.
constexpr float kMeanStep = 0.125f;
constexpr double kMostScales = 12;
constexpr std::size_t kMostSampledRows = 128;

float scale_of(std::int8_t code) {
  return static_cast<float>(std::exp2(code / kClassesAnOctave));
}

}  // namespace

ColumnClasses classes_of(std::span<const std::int8_t> scales) {
  ColumnClasses classes;
  const int largest = scales.empty() ? 0 : *std::ranges::max_element(scales);
  std::array<std::vector<std::int32_t>, kMostClasses> members;
  for (std::size_t j = 0; j < scales.size(); ++j) {
    const auto below = static_cast<std::size_t>(largest - scales[j]);
    members[std::min(below, kMostClasses - 1)].push_back(static_cast<std::int32_t>(j));
  }
  for (const auto& columns : members) {
    if (columns.empty()) continue;
    classes.order.insert(classes.order.end(), columns.begin(), columns.end());
    classes.ends.push_back(static_cast<std::int32_t>(classes.order.size()));
  }
  return classes;
}

std::int8_t scale_code(double scale) {
  if (!(scale > 0)) return -127;
  return static_cast<std::int8_t>(
      std::clamp(std::round(kClassesAnOctave * std::log2(scale)), -127.0, 127.0));
}

float ColumnCodes::mean_of(std::size_t column) const {
  return kMeanStep * static_cast<float>(mean[column]) * scale_of(scale[column]);
}

ColumnCodes::ColumnCodes(std::span<const float> values, std::size_t columns)
    : ColumnCodes(columns) {
  const std::size_t all = values.size() / columns;
  const std::size_t stride = std::max<std::size_t>(1, all / kMostSampledRows);
  std::vector<double> sum(columns), squares(columns);
  kernels::column_sums(values.data(), all, columns, stride, sum.data(), squares.data());
  const auto rows = static_cast<double>((all + stride - 1) / stride);
  for (std::size_t j = 0; j < columns; ++j) {
    const double average = sum[j] / rows;
    const double variance = squares[j] / rows - average * average;
    scale[j] =
        scale_code(std::max(std::sqrt(std::max(variance, 0.0)), std::abs(average) / kMostScales));
    mean[j] = static_cast<std::int8_t>(
        std::clamp(std::round(average / (kMeanStep * scale_of(scale[j]))), -127.0, 127.0));
  }
}

}  // namespace thinwire::moe
