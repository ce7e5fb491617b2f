// Which parts of a slot share a table, and what the payload takes then: parts of the body of the
// kernel that writes slots (encode_block.h). What StepEncoder::group_parts() and price() decide on
// the CPU, by the same integers (price_math.h).
#pragma once

#include "thinwire/compressors/entropy/code_block.h"
#include "thinwire/compressors/entropy/price_math.h"

namespace thinwire::entropy {

struct GroupShared {
  // Of a part alone, and together with those whose table it may share.
  std::uint32_t counts[2][kMaxSymbols];
  FixedBits terms[2][kMaxSymbols], bits[2];
  std::uint8_t zeros[2], decay[2], last[2];
};

struct ExcessShared {
  std::uint32_t counts[kMaxSymbols];
  std::uint32_t long_bytes;
  FixedBits terms[kMaxSymbols], bits;
};

// The groups of some parts; the same in all threads.
struct SlotGroups {
  std::uint32_t count = 0;
  FixedBits bits = 0;         // of all of them
  std::uint64_t symbols = 0;  // of the parts with codes, pairs counted once
  std::uint32_t coded = 0;    // such parts
};

THINWIRE_HOST_DEVICE bool is_coded(std::uint32_t kind) {
  return kind >= 2;
}
THINWIRE_HOST_DEVICE bool is_paired(std::uint32_t kind) {
  return kind >= 5;
}
THINWIRE_HOST_DEVICE std::uint64_t symbols_of(const kernels::SlotPart& part, std::uint32_t kind) {
  return is_paired(kind) ? (std::uint64_t{part.numel} + 1) / 2 : part.numel;
}

// Of shared.counts[which], by thread `pricer` once the terms are there.
template <typename Context>
THINWIRE_HOST_DEVICE void price_counts(const Context& block, GroupShared& shared, int which,
                                       bool pairs, std::uint32_t pricer) {
  if (block.thread() != pricer) return;
  const CountsPrice price = price_of_counts(
      shared.counts[which], pairs, [&](int s) { return shared.terms[which][s]; }, CountLog());
  shared.bits[which] = price.bits;
  shared.zeros[which] = price.model.zeros;
  shared.decay[which] = price.model.decay;
  shared.last[which] = price.model.last;
}

// Thread 0: notes what shared.counts[which] take.
THINWIRE_HOST_DEVICE void keep_price(const GroupShared& shared, int which,
                                     kernels::CodedGroup& group) {
  group.bits = shared.bits[which];
  group.zeros = shared.zeros[which];
  group.decay = shared.decay[which];
  group.last = shared.last[which];
}

// A part takes the last table of its sort where that takes fewer bits.
template <typename Context>
THINWIRE_HOST_DEVICE SlotGroups group_parts(Context& block, GroupShared& shared,
                                            const CodeParts& parts, kernels::CodedGroup* groups) {
  constexpr std::uint32_t kNone = ~0u;
  constexpr std::uint32_t kOther = kMaxSymbols;  // of the threads for what is together
  const std::uint32_t thread = block.thread();
  SlotGroups made;
  // The last group of codes, and that of pairs.
  std::uint32_t of_codes = kNone, of_pairs = kNone;
  FixedBits bits_of_codes = 0, bits_of_pairs = 0;
  for (std::uint32_t p = 0; p < parts.count; ++p) {
    kernels::CodedPart& coded = parts.coded[p];
    if (!is_coded(coded.kind)) {
      if (thread == 0) coded.group = 0;
      continue;
    }
    const bool pairs = is_paired(coded.kind);
    const std::uint32_t last = pairs ? of_pairs : of_codes;
    if (thread < kMaxSymbols) {
      shared.counts[0][thread] = coded.symbols[thread];
      shared.terms[0][thread] = CountLog()(coded.symbols[thread]);
    } else if (thread < 2 * kOther && last != kNone) {
      const std::uint32_t s = thread - kOther;
      const std::uint32_t count = groups[last].symbols[s] + coded.symbols[s];
      shared.counts[1][s] = count;
      shared.terms[1][s] = CountLog()(count);
    }
    block.sync();
    price_counts(block, shared, 0, pairs, 0);
    if (last != kNone) {
      price_counts(block, shared, 1, pairs, kOther);
    } else if (thread == kOther) {
      shared.bits[1] = INT64_MAX;
    }
    block.sync();
    const FixedBits before = pairs ? bits_of_pairs : bits_of_codes;
    const bool joins = shared.bits[1] <= before + shared.bits[0];
    const std::uint32_t index = joins ? last : made.count;
    const FixedBits now = shared.bits[joins ? 1 : 0];
    made.bits += joins ? now - before : now;
    if (!joins) ++made.count;
    (pairs ? of_pairs : of_codes) = index;
    (pairs ? bits_of_pairs : bits_of_codes) = now;
    made.symbols += symbols_of(parts.part(p), coded.kind);
    ++made.coded;
    kernels::CodedGroup& group = groups[index];
    if (thread < kMaxSymbols) group.symbols[thread] = shared.counts[joins ? 1 : 0][thread];
    if (thread < 3) {
      group.count[thread] = (joins ? group.count[thread] : 0) + coded.count[thread];
      group.fraction[thread] = (joins ? group.fraction[thread] : 0) + coded.fraction[thread];
    }
    if (thread == 0) {
      keep_price(shared, joins ? 1 : 0, group);
      group.pairs = pairs;
      coded.group = index;
      coded.joins = joins;
    }
    block.sync();
  }
  return made;
}

// The same groups of other codes of the parts.
template <typename Context>
THINWIRE_HOST_DEVICE SlotGroups count_groups(Context& block, GroupShared& shared,
                                             const CodeParts& parts, kernels::CodedGroup* groups,
                                             std::uint32_t count) {
  const std::uint32_t thread = block.thread();
  SlotGroups made{count, 0, 0, 0};
  for (std::uint32_t g = 0; g < count; ++g) {
    const bool pairs = groups[g].pairs;
    std::uint32_t sum = 0;
    for (std::uint32_t p = 0; p < parts.count && thread < kMaxSymbols; ++p) {
      const kernels::CodedPart& coded = parts.coded[p];
      if (coded.group == g && is_coded(coded.kind) && is_paired(coded.kind) == pairs) {
        sum += coded.symbols[thread];
      }
    }
    if (thread < kMaxSymbols) {
      groups[g].symbols[thread] = shared.counts[0][thread] = sum;
      shared.terms[0][thread] = CountLog()(sum);
    }
    block.sync();
    price_counts(block, shared, 0, pairs, 0);
    block.sync();
    if (thread == 0) keep_price(shared, 0, groups[g]);
    made.bits += shared.bits[0];
  }
  for (std::uint32_t p = 0; p < parts.count; ++p) {
    const std::uint32_t kind = parts.coded[p].kind;
    if (!is_coded(kind)) continue;
    made.symbols += symbols_of(parts.part(p), kind);
    ++made.coded;
  }
  return made;
}

// Bytes of a long number of the excess; 0 of one that is a symbol.
THINWIRE_HOST_DEVICE std::uint32_t long_number_bytes(std::uint32_t number) {
  if (number < kMaxSymbols - 1) return 0;
  std::uint32_t bytes = 1;
  for (std::uint32_t rest = number - (kMaxSymbols - 1); rest >= 128; rest >>= 7) ++bytes;
  return bytes;
}

// How often each symbol of the excess occurs, and what they and long numbers take.
template <typename Context>
THINWIRE_HOST_DEVICE void count_excess(Context& block, ExcessShared& shared,
                                       const CodeParts& parts) {
  const std::uint32_t thread = block.thread();
  if (thread < kMaxSymbols) shared.counts[thread] = 0;
  if (thread == 0) shared.long_bytes = 0;
  block.sync();
  const std::uint32_t total = parts.before[parts.tiles];
  std::uint32_t zeros = 0;
  for (std::uint32_t i = thread; i < total; i += block.size()) {
    const std::uint32_t number = parts.excess[i];
    if (number == 0) {
      ++zeros;
      continue;
    }
    block.add(&shared.counts[number < kMaxSymbols - 1 ? number : kMaxSymbols - 1], 1);
    if (const std::uint32_t bytes = long_number_bytes(number); bytes > 0) {
      block.add(&shared.long_bytes, bytes);
    }
  }
  if (zeros > 0) block.add(&shared.counts[0], zeros);
  block.sync();
  if (thread < kMaxSymbols) shared.terms[thread] = CountLog()(shared.counts[thread]);
  block.sync();
  if (thread == 0) {
    shared.bits = bits_of_counts(
                      shared.counts, [&](int s) { return shared.terms[s]; }, CountLog()) +
                  kFixedByte * static_cast<FixedBits>(shared.long_bytes);
  }
  block.sync();
}

// Bits of the payload, about; of the excess there is so many times what was counted.
THINWIRE_HOST_DEVICE double price_of_payload(const SlotGroups& groups, std::uint32_t parts,
                                             FixedBits of_excess, double excess_weight) {
  const auto bytes = static_cast<FixedBits>(
      least_payload_bytes(parts) + 4 * static_cast<std::uint64_t>(lanes_for(groups.symbols)));
  return (static_cast<double>(kFixedByte * bytes + groups.bits) +
          excess_weight * static_cast<double>(of_excess)) /
         kFixedBit;
}

}  // namespace thinwire::entropy
