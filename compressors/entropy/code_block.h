// Quantising the values of a slot (dead_zone.h) on a GPU: parts of the body of its kernel, see
// encode_block.h. Sums are of integers, so that their order does not matter. By kMaxBlockThreads
// threads, see kernels/block.h; beside its context's functions
//
//   void add(counter, n)   an atomic sum, of 32 or 64 bits
#pragma once

#include "thinwire/compressors/entropy/dead_zone_math.h"
#include "thinwire/compressors/entropy/step_search.h"
#include "thinwire/compressors/entropy/table_math.h"
#include "thinwire/compressors/kernels/block.h"
#include "thinwire/compressors/kernels/slot_task.h"
#include "thinwire/compressors/kernels/sum_before.h"

namespace thinwire::entropy {

// What is quantised together: the parts of a slot, or of a sample of it.
struct CodeParts {
  const kernels::SlotPart* parts;
  std::uint32_t stride;  // bytes from one part to the next
  std::uint32_t count, tiles;
  const float* values;
  kernels::CodedPart* coded;
  std::uint8_t* symbols;
  // Numbers beyond the bound, and before each tile; their number is at the end, after all tiles.
  std::uint32_t* before;
  std::uint32_t* excess;

  THINWIRE_HOST_DEVICE const kernels::SlotPart& part(std::uint32_t index) const {
    return *reinterpret_cast<const kernels::SlotPart*>(reinterpret_cast<const std::byte*>(parts) +
                                                       std::uint64_t{stride} * index);
  }
  // Whose tile that is.
  THINWIRE_HOST_DEVICE std::uint32_t part_of(std::uint32_t tile) const {
    std::uint32_t low = 0, high = count;
    while (high - low > 1) {
      const std::uint32_t middle = low + (high - low) / 2;
      (part(middle).first_tile <= tile ? low : high) = middle;
    }
    return low;
  }
};

struct ZoneShared {
  std::uint32_t below_one, below_two, large;
};

// Part `index` of a slot, by a sample of its values.
template <typename Context>
THINWIRE_HOST_DEVICE void choose_zone(Context& block, ZoneShared& shared, const CodeParts& parts,
                                      std::uint32_t index, float step, float asked, bool by_part) {
  static_assert(kZoneSample == kernels::kMaxBlockThreads);
  const std::uint32_t thread = block.thread();
  const kernels::SlotPart& part = parts.part(index);
  if (thread == 0) shared.below_one = shared.below_two = shared.large = 0;
  block.sync();
  const std::uint32_t sampled = part.numel < kZoneSample ? part.numel : kZoneSample;
  float magnitude = 0;
  if (thread < sampled) {
    const float value = parts.values[part.value + std::uint64_t{part.numel / sampled} * thread];
    magnitude = kernels::float_of(kernels::bits_of(value) & 0x7FFFFFFFu);
    if (magnitude < (1 - asked) * step) block.add(&shared.below_one, 1);
    if (magnitude < (2 - asked) * step) block.add(&shared.below_two, 1);
  }
  block.sync();
  float rounding = asked;
  if (by_part && part.numel > 0 && usable_step(step)) {
    rounding = rounding_of_part(shared.below_one, shared.below_two);
  }
  const bool long_enough = part.numel >= kFewestForPairs;
  if (long_enough && magnitude >= (2 - rounding) * step) block.add(&shared.large, 1);
  block.sync();
  if (thread != 0) return;
  kernels::CodedPart& coded = parts.coded[index];
  coded.rounding = rounding;
  coded.bound = long_enough && shared.large <= kMostBeyondPairs ? kBoundOfPairs : kBoundOfCodes;
}

struct CodeShared {
  std::uint32_t symbols[kMaxSymbols];
  std::uint32_t count[3], fraction[3];
  std::uint32_t excess, not_finite;
};

inline constexpr std::uint32_t kCodeRun = kernels::kSlotTile / kernels::kMaxBlockThreads;

// A tile of a part, of which this thread has a few elements.
struct CodeTile {
  const kernels::SlotPart& part;
  kernels::CodedPart& coded;
  std::uint32_t begin, count;
};

template <typename Context>
THINWIRE_HOST_DEVICE CodeTile code_tile_of(const Context& block, const CodeParts& parts,
                                           std::uint32_t tile) {
  const std::uint32_t index = parts.part_of(tile);
  const kernels::SlotPart& part = parts.part(index);
  const std::uint32_t begin =
      (tile - part.first_tile) * kernels::kSlotTile + kCodeRun * block.thread();
  const std::uint32_t left = part.numel > begin ? part.numel - begin : 0;
  return {part, parts.coded[index], begin, left < kCodeRun ? left : kCodeRun};
}

// After the zones. What is counted of the parts has to be 0 before the first tile.
template <typename Context>
THINWIRE_HOST_DEVICE void code_tile(Context& block, CodeShared& shared, const CodeParts& parts,
                                    std::uint32_t tile, float inverse_step) {
  const std::uint32_t thread = block.thread();
  // Each thread has read what it clears here.
  if (thread < kMaxSymbols) shared.symbols[thread] = 0;
  if (thread < 3) shared.count[thread] = shared.fraction[thread] = 0;
  if (thread == 0) shared.excess = shared.not_finite = 0;
  block.sync();
  const CodeTile here = code_tile_of(block, parts, tile);
  const std::uint32_t bound = here.coded.bound;
  const bool paired = bound == kBoundOfPairs;
  const float* values = parts.values + here.part.value + here.begin;
  std::uint8_t* symbols = parts.symbols + here.part.first + here.begin;
  // Most symbols are 0, and most sums those of one magnitude: one addition a thread.
  std::uint32_t zeros = 0, excess = 0, first = 0, count[3] = {}, fraction[3] = {};
  for (std::uint32_t i = 0; i < here.count; ++i) {
    if (!kernels::is_finite(values[i])) {
      block.add(&shared.not_finite, 1);
      symbols[i] = 0;
      continue;
    }
    const float scaled = scaled_magnitude(values[i], inverse_step);
    const std::uint32_t magnitude = rounded_magnitude(scaled, here.coded.rounding);
    for (std::uint32_t c = 0; c < 3; ++c) {
      if (magnitude == 0 || (magnitude < 3 ? magnitude : 3) != c + 1) continue;
      ++count[c];
      fraction[c] += static_cast<std::uint32_t>(centroid_fraction(scaled, magnitude));
    }
    if (magnitude >= bound) ++excess;
    const std::uint32_t symbol =
        symbol_of_magnitude(magnitude, kernels::bits_of(values[i]) >> 31 != 0, bound);
    symbols[i] = static_cast<std::uint8_t>(symbol);
    std::uint32_t met = symbol;
    if (paired) {
      const bool is_first = i % 2 == 0;
      met = is_first ? kCodesOfPairs * symbol : first + symbol;
      first = met;
      if (is_first && i + 1 < here.count) continue;
    }
    if (met == 0) {
      ++zeros;
    } else {
      block.add(&shared.symbols[met], 1);
    }
  }
  if (zeros > 0) block.add(&shared.symbols[0], zeros);
  if (excess > 0) block.add(&shared.excess, excess);
  for (std::uint32_t c = 0; c < 3; ++c) {
    if (count[c] == 0) continue;
    block.add(&shared.count[c], count[c]);
    block.add(&shared.fraction[c], fraction[c]);
  }
  block.sync();
  // Tiles follow one another, and each of these is one thread's.
  if (thread < kMaxSymbols) here.coded.symbols[thread] += shared.symbols[thread];
  if (thread < 3) {
    const auto sum = static_cast<std::int32_t>(shared.fraction[thread]);
    here.coded.count[thread] += shared.count[thread];
    here.coded.fraction[thread] += static_cast<std::uint64_t>(std::int64_t{sum});
  }
  if (thread != 0) return;
  parts.before[tile] = shared.excess;
  here.coded.not_finite += shared.not_finite;
}

// From the numbers of each tile to those before it; none of parts that are not finite.
template <typename Context>
THINWIRE_HOST_DEVICE void place_excess(Context& block, kernels::SumShared& shared,
                                       const CodeParts& parts) {
  const std::uint32_t run = (parts.tiles + block.size() - 1) / block.size();
  const std::uint32_t begin = run * block.thread();
  const std::uint32_t end = begin + run < parts.tiles ? begin + run : parts.tiles;
  const auto of_tile = [&](std::uint32_t tile) {
    return parts.coded[parts.part_of(tile)].not_finite > 0 ? 0 : parts.before[tile];
  };
  std::uint32_t sum = 0;
  for (std::uint32_t tile = begin; tile < end; ++tile) sum += of_tile(tile);
  std::uint32_t before = kernels::sum_before(block, shared, sum);
  for (std::uint32_t tile = begin; tile < end; ++tile) {
    const std::uint32_t more = of_tile(tile);
    parts.before[tile] = before;
    before += more;
  }
  if (block.thread() + 1 == block.size()) parts.before[parts.tiles] = before;
}

template <typename Context>
THINWIRE_HOST_DEVICE void list_excess_of_tile(Context& block, kernels::SumShared& shared,
                                              const CodeParts& parts, std::uint32_t tile,
                                              float inverse_step) {
  const CodeTile here = code_tile_of(block, parts, tile);
  if (here.coded.not_finite > 0) return;
  const std::uint32_t bound = here.coded.bound;
  const float* values = parts.values + here.part.value + here.begin;
  const std::uint8_t* symbols = parts.symbols + here.part.first + here.begin;
  std::uint32_t mine = 0;
  for (std::uint32_t i = 0; i < here.count; ++i) mine += symbols[i] >= 2 * bound - 1 ? 1 : 0;
  std::uint32_t* next =
      parts.excess + parts.before[tile] + kernels::sum_before(block, shared, mine);
  for (std::uint32_t i = 0; i < here.count; ++i) {
    if (symbols[i] < 2 * bound - 1) continue;
    const float scaled = scaled_magnitude(values[i], inverse_step);
    *next++ = rounded_magnitude(scaled, here.coded.rounding) - bound;
  }
}

}  // namespace thinwire::entropy
