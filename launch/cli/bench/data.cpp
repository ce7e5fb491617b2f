#include "thinwire/launch/cli/bench/data.h"

#include "thinwire/common/philox.h"

namespace thinwire::launch {
namespace {

constexpr float kScale = 0x1p-18f;
constexpr std::uint32_t kRows = 1, kColumns = 2, kNoise = 3;

// Whole numbers in [-380, 380].
std::int32_t factor(std::uint32_t which, std::int64_t index) {
  const auto stream = PhiloxStream::of({.seed = 1, .layer = which});
  return static_cast<std::int32_t>(stream.word(static_cast<std::uint64_t>(index)) % 761) - 380;
}

// Sum of four uniform numbers of 16 bits, less its mean.
std::int32_t noise(std::uint32_t low, std::uint32_t high) {
  return static_cast<std::int32_t>((low & 0xFFFF) + (low >> 16) + (high & 0xFFFF) + (high >> 16)) -
         0x1FFFE;
}

}  // namespace

void fill_bench_values(int rank, std::int64_t cols, std::int64_t first, std::span<float> values) {
  const auto stream =
      PhiloxStream::of({.seed = 1, .layer = kNoise, .rank = static_cast<std::uint32_t>(rank)});
  std::vector<std::int32_t> columns;
  for (std::int64_t c = 0; c < cols; ++c) columns.push_back(factor(kColumns, c));
  std::int64_t row = -1;
  std::int32_t row_factor = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::int64_t e = first + static_cast<std::int64_t>(i);
    if (e / cols != row) {
      row = e / cols;
      row_factor = factor(kRows, row);
    }
    const auto words = stream.block(static_cast<std::uint64_t>(e / 2));
    const std::size_t half = e % 2 == 0 ? 0 : 2;
    const std::int32_t signal = row_factor * columns[static_cast<std::size_t>(e % cols)];
    values[i] = kScale * static_cast<float>(signal + noise(words[half], words[half + 1]));
  }
}

std::vector<double> exact_bench_mean(int world, std::int64_t cols, std::int64_t numel) {
  std::vector<double> mean(static_cast<std::size_t>(numel));
  std::vector<float> values(mean.size());
  for (int rank = 0; rank < world; ++rank) {
    fill_bench_values(rank, cols, 0, values);
    for (std::size_t i = 0; i < mean.size(); ++i) mean[i] += values[i];
  }
  for (double& value : mean) value /= world;
  return mean;
}

}  // namespace thinwire::launch
