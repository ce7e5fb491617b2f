#include "thinwire/compressors/peft/rans_model.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>

namespace thinwire::peft::detail {
namespace {

std::unique_ptr<const RansModel> build(int level) {
  auto model = std::make_unique<RansModel>();
  std::array<std::uint32_t, 256> frequency;
  std::uint32_t sum = 0;
  for (unsigned byte = 0; byte < 256; ++byte) {
    // 255^8 < 2^64, so the weight fits; the product needs 78 bits.
    std::uint64_t weight = 1;
    for (int bit = 0; bit < 8; ++bit)
      weight *= static_cast<std::uint64_t>(byte >> bit & 1 ? level : 256 - level);
    __extension__ using Wide = unsigned __int128;
    frequency[byte] =
        1 + static_cast<std::uint32_t>(static_cast<Wide>(weight) * (kRansTotal - 256) >> 64);
    sum += frequency[byte];
  }
  frequency[level <= 128 ? 0x00 : 0xFF] += kRansTotal - sum;

  std::uint32_t start = 0;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const std::uint32_t f = frequency[byte];
    model->decode[byte] = {static_cast<std::uint16_t>(f), static_cast<std::uint16_t>(start)};
    model->encode[byte] = {(std::uint64_t{1} << kReciprocalBits) / f + 1,
                           static_cast<std::uint16_t>(f), static_cast<std::uint16_t>(start)};
    std::fill_n(model->symbol_of_slot.begin() + start, f, static_cast<std::uint8_t>(byte));
    start += f;
  }
  return model;
}

// -log2(i / 256), the cost of one entry that is set (i = L) or not set (i = 256 - L).
const std::array<double, 257>& bit_costs() {
  static const auto costs = [] {
    std::array<double, 257> table{};
    for (int i = 1; i <= 256; ++i) table[static_cast<std::size_t>(i)] = 8 - std::log2(i);
    return table;
  }();
  return costs;
}

}  // namespace

const RansModel& rans_model(int level) {
  static std::array<std::once_flag, 256> once;
  static std::array<std::unique_ptr<const RansModel>, 256> models;
  const auto i = static_cast<std::size_t>(level);
  std::call_once(once[i], [&] { models[i] = build(level); });
  return *models[i];
}

int best_level(std::int64_t ones, std::int64_t entries) {
  if (ones == 0) return 0;
  return static_cast<int>(std::clamp<std::int64_t>((ones * 256 + entries / 2) / entries, 1, 255));
}

double level_cost(int level, std::int64_t ones, std::int64_t entries) {
  if (level == 0) return 0;
  const auto& costs = bit_costs();
  static const double kFloorCost = -std::log2(1 - 256.0 / kRansTotal) / 8;
  return static_cast<double>(entries) * kFloorCost +
         static_cast<double>(ones) * costs[static_cast<std::size_t>(level)] +
         static_cast<double>(entries - ones) * costs[static_cast<std::size_t>(256 - level)];
}

}  // namespace thinwire::peft::detail
