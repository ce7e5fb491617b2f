// Writing the payload of a slot (step_coder.h, rans.h) whose parts were quantised and grouped:
// parts of the body of the kernel that writes slots (encode_block.h).
//
// The stream is one warp's work, as reading is (slot_block.h): thread t has the lanes t, t + 32,
// t + 64 and t + 96. Everything else all threads write together, and nothing beyond the slot.
#pragma once

#include "thinwire/compressors/entropy/group_block.h"
#include "thinwire/compressors/entropy/table_block.h"

namespace thinwire::entropy {

inline constexpr std::uint32_t kStreamThreads = 32;
inline constexpr std::uint32_t kStreamLanes = kMaxLanes / kStreamThreads;  // of a thread

struct WriteShared {
  TableShared table;
  SlotTable symbols;
  std::uint32_t reciprocal[kMaxSymbols];
  std::uint8_t shift[kMaxSymbols];
  kernels::SumShared sums;
  std::uint64_t size;
  std::uint32_t more;
};

// A stream that the first warp writes; means nothing in other threads.
struct SlotStreamOut {
  std::byte* payload;
  std::uint64_t at, end;  // bytes of the payload
  std::uint32_t lanes;
  std::uint32_t states[kStreamLanes];
};

// x / frequency == (2x · reciprocal) >> (32 + shift), see SymbolTable::packed.
THINWIRE_HOST_DEVICE std::uint32_t shift_of_frequency(std::uint32_t frequency) {
  return frequency > 1
             ? static_cast<std::uint32_t>(64 - kernels::leading_zeros(std::uint64_t{frequency - 1}))
             : 0;
}
THINWIRE_HOST_DEVICE std::uint32_t reciprocal_of(std::uint32_t frequency, std::uint32_t shift) {
  if (frequency == 0) return 0;
  return static_cast<std::uint32_t>(((std::uint64_t{1} << (31 + shift)) + frequency - 1) /
                                    frequency);
}

// Encodes symbols first … first + count − 1, at most a group, for lanes 0 … count − 1.
template <typename Context, typename SymbolOf>
THINWIRE_HOST_DEVICE void encode_slot_group(Context& block, const WriteShared& shared,
                                            SlotStreamOut& stream, std::uint64_t first,
                                            std::uint32_t count, const SymbolOf& symbol_of) {
  const std::uint32_t mine = 1u << block.thread();
  std::uint32_t words = 0;
  for (std::uint32_t v = 0; v < kStreamLanes; ++v) {
    if (kStreamThreads * v >= count) continue;  // the same for all threads of the warp
    const std::uint32_t lane = kStreamThreads * v + block.thread();
    const bool codes = lane < count;
    const std::uint32_t symbol = codes ? symbol_of(first + lane) : 0;
    const std::uint32_t frequency = shared.symbols.frequency[symbol];
    std::uint32_t x = stream.states[v];
    const bool full = codes && x >> (31 - kTableBits) >= frequency;
    const std::uint32_t are_full = block.ballot(full);
    if (full) {
      const std::uint64_t at = stream.at + 2 * (words + kernels::bits_set(are_full & (mine - 1)));
      if (at + 2 <= stream.end) {
        stream.payload[at] = static_cast<std::byte>(x & 0xFF);
        stream.payload[at + 1] = static_cast<std::byte>(x >> 8 & 0xFF);
      }
      x >>= 16;
    }
    words += kernels::bits_set(are_full);
    if (!codes) continue;
    const auto quotient = static_cast<std::uint32_t>(
        (std::uint64_t{2 * x} * shared.reciprocal[symbol]) >> 32 >> shared.shift[symbol]);
    stream.states[v] = x + shared.symbols.start[symbol] + quotient * (kTableTotal - frequency);
  }
  stream.at += 2 * std::uint64_t{words};
}

// From the last symbol to the first, by the first warp. Stops where the slot is full.
template <typename Context, typename SymbolOf>
THINWIRE_HOST_DEVICE void encode_slot_segment(Context& block, const WriteShared& shared,
                                              SlotStreamOut& stream, std::uint64_t count,
                                              const SymbolOf& symbol_of) {
  const auto tail = static_cast<std::uint32_t>(count % stream.lanes);
  std::uint64_t first = count - tail;
  if (tail > 0) encode_slot_group(block, shared, stream, first, tail, symbol_of);
  while (first > 0 && stream.at <= stream.end) {
    first -= stream.lanes;
    encode_slot_group(block, shared, stream, first, stream.lanes, symbol_of);
  }
}

// One payload. All threads make the same calls.
template <typename Context>
class PayloadWriter {
 public:
  THINWIRE_HOST_DEVICE PayloadWriter(Context& block, WriteShared& shared,
                                     const kernels::SlotCode& code, const CodeParts& parts,
                                     const ExcessShared& excess, const SlotGroups& groups)
      : block_(block),
        shared_(shared),
        slot_(code.slot),
        parts_(parts),
        groups_(code.groups),
        excess_(excess),
        counts_(groups),
        total_excess_(parts.before[parts.tiles]) {}

  // Bytes of the payload; 0 where it does not fit.
  THINWIRE_HOST_DEVICE std::uint64_t write(float step) {
    put_word(0, 0);
    put_word(4, kernels::bits_of(step));
    at_ = 8;
    for (std::uint32_t p = 0; p < parts_.count; ++p) write_part(p);
    write_excess_table();
    std::uint64_t size = at_;
    if (counts_.coded > 0) size = write_stream();
    if (size > slot_.bytes) return 0;
    put_word(0, static_cast<std::uint32_t>(size));
    return size;
  }

 private:
  // By thread 0.
  THINWIRE_HOST_DEVICE void put(std::uint64_t at, std::uint32_t byte) {
    if (block_.thread() == 0 && at < slot_.bytes) slot_.payload[at] = static_cast<std::byte>(byte);
  }
  THINWIRE_HOST_DEVICE void put_word(std::uint64_t at, std::uint32_t word) {
    for (std::uint32_t b = 0; b < 4; ++b) put(at + b, word >> (8 * b) & 0xFF);
  }

  // This thread's weight of the table of a group.
  THINWIRE_HOST_DEVICE std::uint8_t weight_of_group(const kernels::CodedGroup& group) {
    if (group.last > 0) {
      return weight_of_model(block_, shared_.table, {group.zeros, group.decay, group.last},
                             group.pairs);
    }
    return weight_of_counts(group.symbols);
  }
  THINWIRE_HOST_DEVICE std::uint8_t weight_of_counts(const std::uint32_t* counts) {
    std::uint64_t total = 0;
    for (int s = 0; s < kMaxSymbols; ++s) total += counts[s];
    return block_.thread() < kMaxSymbols ? weight_of(counts[block_.thread()], total)
                                         : std::uint8_t{0};
  }

  // The number of weights up to the last that is not 0, and these.
  THINWIRE_HOST_DEVICE void put_weights(const std::uint32_t* counts) {
    const std::uint32_t thread = block_.thread();
    const std::uint8_t weight = weight_of_counts(counts);
    std::uint32_t used = 0;
    for (std::uint32_t s = 0; s < kMaxSymbols; ++s) {
      if (counts[s] > 0) used = s + 1;
    }
    put(at_, used);
    if (thread < used && at_ + 1 + thread < slot_.bytes) {
      slot_.payload[at_ + 1 + thread] = static_cast<std::byte>(weight);
    }
    at_ += 1 + used;
  }

  THINWIRE_HOST_DEVICE void write_part(std::uint32_t p) {
    const kernels::CodedPart& coded = parts_.coded[p];
    if (!is_coded(coded.kind)) {
      put(at_++, coded.kind);
      if (block_.thread() == 0) slot_.read[p] = {coded.kind, 0};
      return;
    }
    const kernels::CodedGroup& group = groups_[coded.group];
    const bool modelled = group.last > 0;
    const std::uint32_t kind = coded.joins ? coded.kind + 2 : coded.kind + (modelled ? 1 : 0);
    std::uint32_t centroids = 0;
    if (block_.thread() == 0) {
      centroids = centroids_of(group, modelled);
      slot_.read[p] = {kind, centroids};
    }
    put(at_++, kind);
    if (coded.joins) return;
    if (modelled) {
      put(at_++, group.zeros);
      put(at_++, group.decay);
      put(at_++, group.last);
      put(at_++, centroids & 0xFF);
      return;
    }
    put_weights(group.symbols);
    for (int c = 0; c < 3; ++c) put(at_++, centroids >> (8 * c) & 0xFF);
  }

  // A model has one for all.
  THINWIRE_HOST_DEVICE static std::uint32_t centroids_of(const kernels::CodedGroup& group,
                                                         bool modelled) {
    const auto byte = [](std::uint64_t count, std::uint64_t fraction) {
      return static_cast<std::uint32_t>(
          centroid_byte(static_cast<std::int64_t>(count), static_cast<std::int64_t>(fraction)));
    };
    std::uint64_t count = 0, fraction = 0;
    std::uint32_t bytes = 0;
    for (int c = 0; c < 3; ++c) {
      count += group.count[c];
      fraction += group.fraction[c];
      bytes |= byte(group.count[c], group.fraction[c]) << (8 * c);
    }
    return modelled ? 0x010101u * byte(count, fraction) : bytes;
  }

  THINWIRE_HOST_DEVICE void write_excess_table() {
    if (total_excess_ == 0) {
      put(at_++, 0);
      return;
    }
    put_weights(excess_.counts);
    put_word(at_, excess_.long_bytes);
    at_ += 4;
    const std::uint64_t end = at_ + excess_.long_bytes;
    for (std::uint32_t begin = 0; begin < total_excess_ && at_ < end; begin += block_.size()) {
      const std::uint32_t i = begin + block_.thread();
      const std::uint32_t number = i < total_excess_ ? parts_.excess[i] : 0;
      const std::uint32_t bytes = long_number_bytes(number);
      const std::uint32_t before = kernels::sum_before(block_, shared_.sums, bytes);
      std::uint32_t rest = number - (kMaxSymbols - 1);
      for (std::uint32_t b = 0; b < bytes; ++b, rest >>= 7) {
        const std::uint64_t at = at_ + before + b;
        const std::uint32_t more = b + 1 < bytes ? 128 : 0;
        if (at < slot_.bytes) slot_.payload[at] = static_cast<std::byte>((rest & 127) | more);
      }
      if (block_.thread() + 1 == block_.size()) shared_.more = before + bytes;
      block_.sync();
      at_ += shared_.more;
    }
  }

  // Where the stream ends; beyond the slot where it does not fit.
  THINWIRE_HOST_DEVICE std::uint64_t write_stream() {
    SlotStreamOut stream{slot_.payload,
                         at_,
                         slot_.bytes,
                         static_cast<std::uint32_t>(lanes_for(counts_.symbols)),
                         {}};
    for (std::uint32_t& state : stream.states) state = kStateLow;
    if (total_excess_ > 0) {
      write_segment(stream, weight_of_counts(excess_.counts), total_excess_,
                    [this](std::uint64_t i) {
                      const std::uint32_t number = parts_.excess[i];
                      return number < kMaxSymbols - 1 ? number : kMaxSymbols - 1;
                    });
    }
    for (std::uint32_t p = parts_.count; p-- > 0;) {
      const std::uint32_t kind = parts_.coded[p].kind;
      if (!is_coded(kind)) continue;
      const kernels::SlotPart& part = parts_.part(p);
      const std::uint8_t* symbols = parts_.symbols + part.first;
      const std::uint8_t weight = weight_of_group(groups_[parts_.coded[p].group]);
      if (!is_paired(kind)) {
        write_segment(stream, weight, part.numel,
                      [&](std::uint64_t i) { return std::uint32_t{symbols[i]}; });
        continue;
      }
      write_segment(stream, weight, symbols_of(part, kind), [&](std::uint64_t i) {
        const std::uint32_t second = 2 * i + 1 < part.numel ? symbols[2 * i + 1] : 0;
        return kCodesOfPairs * symbols[2 * i] + second;
      });
    }
    if (block_.thread() < kStreamThreads) end_stream(stream);
    block_.sync();
    return shared_.size;
  }

  template <typename SymbolOf>
  THINWIRE_HOST_DEVICE void write_segment(SlotStreamOut& stream, std::uint8_t weight,
                                          std::uint64_t count, const SymbolOf& symbol_of) {
    const std::uint32_t thread = block_.thread();
    const std::uint32_t only = make_table(block_, shared_.table, shared_.symbols, weight);
    if (thread < kMaxSymbols) {
      const std::uint32_t frequency = shared_.symbols.frequency[thread];
      const std::uint32_t shift = shift_of_frequency(frequency);
      shared_.shift[thread] = static_cast<std::uint8_t>(shift);
      shared_.reciprocal[thread] = reciprocal_of(frequency, shift);
    }
    block_.sync();
    if (only == kMaxSymbols && thread < kStreamThreads) {
      encode_slot_segment(block_, shared_, stream, count, symbol_of);
    }
    // The next table is made behind syncs, which the first warp comes to when it is done.
  }

  THINWIRE_HOST_DEVICE void end_stream(const SlotStreamOut& stream) {
    const std::uint64_t end = stream.at + 4 * std::uint64_t{stream.lanes};
    if (block_.thread() == 0) shared_.size = end;
    if (end > stream.end) return;
    for (std::uint32_t v = 0; v < kStreamLanes; ++v) {
      const std::uint32_t lane = kStreamThreads * v + block_.thread();
      if (lane >= stream.lanes) continue;
      kernels::store_word(stream.payload + stream.at + 4 * lane, stream.states[v]);
    }
  }

  Context& block_;
  WriteShared& shared_;
  const kernels::Slot& slot_;
  const CodeParts& parts_;
  const kernels::CodedGroup* groups_;
  const ExcessShared& excess_;
  const SlotGroups counts_;
  const std::uint32_t total_excess_;
  std::uint64_t at_ = 0;
};

}  // namespace thinwire::entropy
