// The kernels that quantise the values of a slot in GPU memory as nvcc compiles them: their PTX is
// executed on the host, with every access checked. Zones, symbols, how often each occurs, sums of
// centroids and the list of what is beyond are those of the CPU; every barrier that is taken out is
// found.
#include <gtest/gtest.h>

#include <limits>

#include "thinwire/common/text.h"
#include "thinwire/compressors/entropy/dead_zone.h"
#include "thinwire/compressors/entropy/part_zone.h"
#include "thinwire/compressors/kernels/slot_task.h"
#include "thinwire/tests/compressors/codecs/payloads.h"
#include "thinwire/tests/support/ptx/barriers.h"
#include "thinwire/tests/support/ptx/machine.h"
#include "thinwire/tests/support/ptx/named_kernels.h"

namespace thinwire::entropy {
namespace {

using namespace kernels;
namespace ptx = testing::ptx;

const std::vector<ptx::Kernel>& compiled_coders() {
  static const std::vector<ptx::Kernel> kernels = ptx::kernels_of_file(THINWIRE_SLOTS_PTX);
  return kernels;
}

// The values of a slot's parts, one behind another, and everything that kernels find of them.
struct Coding {
  std::vector<float> values;
  std::vector<SlotPart> parts;
  std::vector<float> step;
  float rounding = 0.4f;
  bool by_part = false;
  std::vector<CodedPart> coded;
  std::vector<std::uint8_t> symbols;
  std::vector<std::uint32_t> before, excess;
  std::uint32_t tiles = 0;

  explicit Coding(float chosen) : step{chosen} {
    using testing::normal_values;
    values.push_back(7);  // is of no part
    add(normal_values(700, 1, 0.03f));
    add(normal_values(3000, 2, 0.003f));
    add({});
    add(normal_values(5001, 3, 0.1f));
    add(std::vector<float>(300));
    add(normal_values(4100, 4, 0.02f));
    add(normal_values(2501, 5, 0.0101f));
    add(normal_values(5, 6, 2.0f));
    add(normal_values(1, 7, 0.1f));
    values[parts[1].value + 2999] = -1.0f;
    values[parts[3].value + 77] = 2000;
    values[parts[3].value + 2050] = -9;
    values[parts[3].value + 2051] = 1e30f;
    values[parts[5].value + 2048] = -std::numeric_limits<float>::infinity();
    values[parts[5].value + 12] = 40;
    values[parts[7].value] = -0.0f;
    coded.resize(parts.size());
    symbols.resize(values.size() - 1);
    before.resize(tiles + 1);
    excess.resize(symbols.size());
  }
  void add(const std::vector<float>& part) {
    const auto numel = static_cast<std::uint32_t>(part.size());
    parts.push_back({values.size() - 1, values.size(), numel, tiles});
    values.insert(values.end(), part.begin(), part.end());
    tiles += (numel + kSlotTile - 1) / kSlotTile;
  }

  void run(const std::vector<ptx::Kernel>& kernels, std::uint64_t seed, std::uint32_t most_blocks) {
    const CodeTask task{.parts = parts.data(),
                        .count = static_cast<std::uint32_t>(parts.size()),
                        .tiles = tiles,
                        .values = values.data(),
                        .step = step.data(),
                        .rounding = rounding,
                        .rounding_by_part = by_part,
                        .coded = coded.data(),
                        .symbols = symbols.data(),
                        .before = before.data(),
                        .excess = excess.data()};
    const auto launch = [&](const std::string& name, std::uint32_t blocks) {
      ptx::GlobalMemory memory;
      const auto add = [&](auto& list) { memory.add(list.data(), list.size() * sizeof(list[0])); };
      add(values);
      add(parts);
      add(step);
      add(coded);
      add(symbols);
      add(before);
      add(excess);
      ptx::run(ptx::kernel_of(kernels, name),
               {.blocks = std::min(blocks, most_blocks),
                .threads = 256,
                .parameters = std::as_bytes(std::span(&task, 1)),
                .seed = seed},
               memory);
    };
    launch("code_zone_kernel", task.count);
    launch("code_tile_kernel", tiles);
    launch("code_place_kernel", 1);
    launch("code_list_kernel", tiles);
  }
};

template <typename A, typename B>
std::string unequal(const std::string& what, std::size_t part, const A& found, const B& expected) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (static_cast<std::uint64_t>(found[i]) == static_cast<std::uint64_t>(expected[i])) continue;
    return concat(what, " ", i, " of part ", part, " is ", static_cast<std::int64_t>(found[i]),
                  ", expected ", static_cast<std::int64_t>(expected[i]));
  }
  return {};
}

// Empty where everything is as on the CPU.
std::string difference(Coding coding, const std::vector<ptx::Kernel>& kernels = compiled_coders(),
                       std::uint64_t seed = 1, std::uint32_t most_blocks = 64) {
  coding.run(kernels, seed, most_blocks);
  const float step = coding.step[0];
  std::vector<std::uint32_t> all_excess;
  for (std::size_t p = 0; p < coding.parts.size(); ++p) {
    const SlotPart& part = coding.parts[p];
    const CodedPart& coded = coding.coded[p];
    const auto values = std::span<const float>(coding.values).subspan(part.value, part.numel);
    DeadZone zone{.inverse_step = step > 0 ? 1 / step : 0, .rounding = coding.rounding};
    if (coding.by_part && !values.empty() && step > 0) {
      zone.rounding = part_rounding(values, step, coding.rounding);
    }
    if (mostly_small(values, (2 - zone.rounding) * step)) zone.bound = kBoundOfPairs;
    if (coded.rounding != zone.rounding || coded.bound != static_cast<std::uint32_t>(zone.bound)) {
      return concat("zone of part ", p, " is ", coded.rounding, " up to ", coded.bound);
    }
    std::vector<std::uint8_t> symbols(values.size());
    std::vector<std::uint32_t> excess(values.size() + 16);
    QuantisedSums sums;
    quantise(values, zone, symbols.data(), excess.data(), sums);
    if (sums.finite != (coded.not_finite == 0)) return concat("whether part ", p, " is finite");
    if (!sums.finite) continue;
    all_excess.insert(all_excess.end(), excess.begin(),
                      excess.begin() + static_cast<std::ptrdiff_t>(sums.excess));
    if (auto found = unequal("symbol", p, coding.symbols.data() + part.first, symbols);
        !found.empty()) {
      return found;
    }
    if (zone.bound == kBoundOfPairs) {
      std::vector<std::uint8_t> pairs((symbols.size() + 1) / 2);
      join_pairs(symbols, pairs.data());
      symbols = pairs;
    }
    if (auto found = unequal("occurrences", p, coded.symbols, count_symbols(symbols));
        !found.empty()) {
      return found;
    }
    if (auto found = unequal("count", p, coded.count, sums.count); !found.empty()) return found;
    if (auto found = unequal("fraction", p, coded.fraction, sums.fraction); !found.empty()) {
      return found;
    }
  }
  if (coding.before.back() != all_excess.size()) {
    return concat(coding.before.back(), " numbers beyond, expected ", all_excess.size());
  }
  return unequal("number beyond", 0, coding.excess, all_excess);
}

TEST(CodePtx, WhatIsFoundOfValuesIsWhatTheCpuFinds) {
  for (const float step : {0.02f, 0.3f, 1e-4f}) {
    Coding coding(step);
    EXPECT_EQ(difference(coding), "") << step;
    coding.by_part = true;
    coding.rounding = 0.5f;
    EXPECT_EQ(difference(coding, compiled_coders(), 2, 1), "") << step << " by part";
  }
}

TEST(CodePtx, WithoutAStepEverythingIsZero) {
  EXPECT_EQ(difference(Coding(0)), "");
}

TEST(CodePtx, EveryBarrierThatIsTakenOutIsFound) {
  const int barriers = ptx::expect_barriers_are_needed(
      compiled_coders(),
      {"code_zone_kernel", "code_tile_kernel", "code_place_kernel", "code_list_kernel"},
      [](const std::vector<ptx::Kernel>& mutants) {
        Coding coding(0.02f);
        coding.by_part = true;
        return ptx::finding_of_seeds(
            [&](std::uint64_t seed) { return difference(coding, mutants, seed, 1); });
      });
  EXPECT_GT(barriers, 8);
}

}  // namespace
}  // namespace thinwire::entropy
