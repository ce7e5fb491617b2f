// Tables of symbols (symbol_table.h) that a block of threads makes together: parts of bodies of
// kernels, see kernels/block.h. A thread each for the first kMaxSymbols threads; further ones take
// part in the syncs.
#pragma once

#include "thinwire/compressors/entropy/price_math.h"
#include "thinwire/compressors/kernels/block.h"

namespace thinwire::entropy {

struct SlotTable {
  std::uint32_t start[kMaxSymbols];
  std::uint32_t frequency[kMaxSymbols];
};

struct TableShared {
  std::uint8_t weights[kMaxSymbols];
  std::uint32_t frequencies[kMaxSymbols];
  std::uint32_t codes[kMaxSymbols];   // of a model
  std::uint32_t counts[kMaxSymbols];  // of its symbols
};

// Of one weight for each thread. Returns the only symbol that occurs, or kMaxSymbols. The table may
// be read after the next sync.
template <typename Context>
THINWIRE_HOST_DEVICE std::uint32_t make_table(Context& block, TableShared& shared, SlotTable& table,
                                              std::uint8_t weight) {
  const std::uint32_t thread = block.thread();
  if (thread < kMaxSymbols) shared.weights[thread] = weight;
  block.sync();
  std::uint64_t total = 0;
  std::uint32_t largest = 0, last = 0;
  std::uint8_t largest_weight = 0;
  for (std::uint32_t s = 0; s < kMaxSymbols; ++s) {
    const std::uint8_t each = shared.weights[s];
    total += value_of(each);
    if (each > 0) last = s;
    if (each <= largest_weight) continue;
    largest_weight = each;
    largest = s;
  }
  if (thread < kMaxSymbols) shared.frequencies[thread] = frequency_of(weight, total);
  block.sync();
  std::uint32_t sum = 0, start = 0, of_last = 0;
  for (std::uint32_t s = 0; s < kMaxSymbols; ++s) sum += shared.frequencies[s];
  const std::uint32_t rest = kTableTotal - sum;
  for (std::uint32_t s = 0; s < kMaxSymbols; ++s) {
    const std::uint32_t frequency = shared.frequencies[s] + (s == largest ? rest : 0);
    if (s < thread) start += frequency;
    if (s == last) of_last = frequency;
  }
  if (thread < kMaxSymbols) {
    table.start[thread] = start;
    table.frequency[thread] = shared.frequencies[thread] + (thread == largest ? rest : 0);
  }
  return of_last == kTableTotal ? last : kMaxSymbols;
}

// This thread's weight of a model's table; 0 of further threads.
template <typename Context>
THINWIRE_HOST_DEVICE std::uint8_t weight_of_model(Context& block, TableShared& shared,
                                                  const CodeModel& model, bool pairs) {
  const std::uint32_t thread = block.thread();
  if (thread == 0) model_codes(model.zeros, model.decay, model.last, shared.codes);
  block.sync();
  std::uint32_t count = 0;
  const std::uint32_t codes = 2u * model.last + 1;
  if (!pairs) {
    count = thread < codes ? shared.codes[thread] : 0;
  } else {
    const std::uint32_t first = thread / kCodesOfPairs, second = thread % kCodesOfPairs;
    if (first < codes && second < codes) {
      count = model_pair(shared.codes[first], shared.codes[second]);
    }
  }
  if (thread < kMaxSymbols) shared.counts[thread] = count;
  block.sync();
  std::uint64_t total = 0;
  for (const std::uint32_t each : shared.counts) total += each;
  return weight_of(count, total);
}

}  // namespace thinwire::entropy
