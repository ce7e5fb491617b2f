// Reading entropy-coded slots (step_coder.h, rans.h) on a GPU: the bodies of its kernels.
//
// A stream's states follow one another, and its words are read from the end in the order of the
// lanes. So one warp reads a slot: thread t has the lanes t, t + 32, t + 64 and t + 96, and finds
// its words by counting the threads before it that need one. Everything else of the payload all
// threads read together, each byte once for all. See kernels/block.h; beside its context's
// functions
//
//   std::uint32_t ballot(bool)   bit t is what thread t gave. Every thread must make the same
//   calls.
#pragma once

#include "thinwire/compressors/entropy/table_block.h"
#include "thinwire/compressors/kernels/block.h"
#include "thinwire/compressors/kernels/slot_task.h"
#include "thinwire/compressors/kernels/sum_before.h"

namespace thinwire::entropy {

// Threads of a block that reads a slot.
inline constexpr std::uint32_t kSlotThreads = 32;
inline constexpr std::uint32_t kLanesOfThread = 4;

struct ReadShared {
  SlotTable tables[2];  // the last one of codes, and of pairs; or that of the excess
  TableShared table;
  std::uint32_t reached[2][kSlotThreads];
};

// Bytes that are read one after another. What is read beyond the end is 0 and noted.
struct SlotBytes {
  const std::byte* data;
  std::uint64_t at, end;
  bool over = false;

  THINWIRE_HOST_DEVICE std::uint32_t byte() {
    if (at >= end) {
      over = true;
      return 0;
    }
    return static_cast<std::uint32_t>(data[at++]);
  }
  THINWIRE_HOST_DEVICE std::uint32_t word() {
    std::uint32_t word = 0;
    for (int shift = 0; shift < 32; shift += 8) word |= byte() << shift;
    return word;
  }
  THINWIRE_HOST_DEVICE void skip(std::uint64_t bytes) {
    if (bytes > end - at) {
      over = true;
      bytes = end - at;
    }
    at += bytes;
  }
};

// A part's kind and table in a payload.
struct PartHead {
  std::uint32_t kind = 0;
  std::uint64_t table = 0;    // where its weights are, or its model
  std::uint32_t weights = 0;  // 0: none of its own
  bool modelled = false;
  std::uint32_t centroids = 0;  // a byte each

  THINWIRE_HOST_DEVICE bool coded() const { return kind >= 2; }
  THINWIRE_HOST_DEVICE bool paired() const { return kind >= 5; }
  THINWIRE_HOST_DEVICE bool own() const { return weights > 0 || modelled; }
};

// Whether a table of so many weights may be there; `in` is behind it then.
THINWIRE_HOST_DEVICE bool skip_weights(SlotBytes& in, std::uint32_t weights, std::uint32_t most) {
  if (weights == 0 || weights > most) return false;
  in.skip(weights - 1);
  return in.byte() > 0 && !in.over;
}

// False where that is no part. Without a table of its own it has the centroids of the last.
THINWIRE_HOST_DEVICE bool read_head(SlotBytes& in, PartHead& head) {
  head.kind = in.byte();
  head.weights = 0;
  head.modelled = head.kind == 3 || head.kind == 6;
  if (in.over || head.kind > 7) return false;
  if (head.kind == 2 || head.kind == 5) {
    head.weights = in.byte();
    head.table = in.at;
    if (!skip_weights(in, head.weights, head.paired() ? kSymbolsOfPairs : kSymbolsOfCodes)) {
      return false;
    }
    head.centroids = in.byte();
    head.centroids |= in.byte() << 8;
    head.centroids |= in.byte() << 16;
  } else if (head.modelled) {
    head.table = in.at;
    const std::uint32_t zeros = in.byte(), decay = in.byte(), last = in.byte();
    if (zeros == 0 || decay == 0 || last == 0 || last > (head.paired() ? 2u : 15u)) return false;
    head.centroids = 0x010101u * in.byte();
  }
  return !in.over;
}

// This thread's weight of a part's table.
template <typename Context>
THINWIRE_HOST_DEVICE std::uint8_t weight_of_part(Context& block, TableShared& shared,
                                                 const std::byte* payload, const PartHead& head) {
  const std::uint32_t thread = block.thread();
  if (!head.modelled) {
    return thread < head.weights ? static_cast<std::uint8_t>(payload[head.table + thread])
                                 : std::uint8_t{0};
  }
  const auto byte = [&](int i) { return static_cast<std::uint8_t>(payload[head.table + i]); };
  return weight_of_model(block, shared, {byte(0), byte(1), byte(2)}, head.paired());
}

// A stream that one warp reads.
struct SlotStream {
  const std::byte* begin;
  std::uint64_t at;  // the words before it are unread
  std::uint32_t lanes;
  std::uint32_t states[kLanesOfThread];
};

// False where that is no stream.
template <typename Context>
THINWIRE_HOST_DEVICE bool open_stream(Context& block, SlotStream& stream, const std::byte* begin,
                                      std::uint64_t bytes, std::uint64_t symbols) {
  stream.begin = begin;
  stream.lanes = static_cast<std::uint32_t>(lanes_for(symbols));
  if (bytes < 4 * stream.lanes) return false;
  stream.at = bytes - 4 * stream.lanes;
  bool fits = true;
  for (std::uint32_t v = 0; v < kLanesOfThread; ++v) {
    const std::uint32_t lane = kSlotThreads * v + block.thread();
    stream.states[v] = kStateLow;
    if (lane >= stream.lanes) continue;
    stream.states[v] = kernels::load_word(begin + stream.at + 4 * lane);
    fits = fits && stream.states[v] >= kStateLow && stream.states[v] < kStateLow << 16;
  }
  return block.ballot(!fits) == 0;
}

// Whether the stream ends here as an encoder's does.
template <typename Context>
THINWIRE_HOST_DEVICE bool stream_ends(Context& block, const SlotStream& stream) {
  bool low = true;
  for (const std::uint32_t state : stream.states) low = low && state == kStateLow;
  return block.ballot(!low) == 0 && stream.at == 0;
}

// Decodes symbols first … first + count − 1, at most a group, and calls take(number, symbol) of
// each. False where words are missing.
template <typename Context, typename Take>
THINWIRE_HOST_DEVICE bool decode_slot_group(Context& block, const SlotTable& table,
                                            SlotStream& stream, std::uint64_t first,
                                            std::uint32_t count, const Take& take) {
  std::uint32_t due[kLanesOfThread] = {};
  std::uint32_t words = 0;
  for (std::uint32_t v = 0; v < kLanesOfThread; ++v) {
    if (kSlotThreads * v >= count) continue;  // the same for all threads
    const std::uint32_t lane = kSlotThreads * v + block.thread();
    bool is_due = false;
    if (lane < count) {
      const std::uint32_t slot = stream.states[v] & (kTableTotal - 1);
      std::uint32_t symbol = 0;
      for (std::uint32_t half = kMaxSymbols / 2; half > 0; half /= 2) {
        if (slot >= table.start[symbol + half]) symbol += half;
      }
      stream.states[v] =
          table.frequency[symbol] * (stream.states[v] >> kTableBits) + slot - table.start[symbol];
      is_due = stream.states[v] < kStateLow;
      take(first + lane, symbol);
    }
    due[v] = block.ballot(is_due);
    words += kernels::bits_set(due[v]);
  }
  if (stream.at < 2 * std::uint64_t{words}) return false;
  stream.at -= 2 * std::uint64_t{words};
  std::uint64_t at = stream.at;
  for (std::uint32_t v = 0; v < kLanesOfThread; ++v) {
    const std::uint32_t mine = 1u << block.thread();
    if ((due[v] & mine) != 0) {
      const std::byte* word = stream.begin + at + 2 * kernels::bits_set(due[v] & (mine - 1));
      stream.states[v] = stream.states[v] << 16 | static_cast<std::uint32_t>(word[1]) << 8 |
                         static_cast<std::uint32_t>(word[0]);
    }
    at += 2 * kernels::bits_set(due[v]);
  }
  return true;
}

// Calls take(number, symbol) of the next `count` symbols, and before(number) of every one that
// begins a run of `run`, a multiple of 128. `only` is what make_table() returned.
template <typename Context, typename Before, typename Take>
THINWIRE_HOST_DEVICE bool decode_segment(Context& block, const SlotTable& table, std::uint32_t only,
                                         SlotStream& stream, std::uint64_t count, std::uint32_t run,
                                         const Before& before, const Take& take) {
  const std::uint32_t group = only < kMaxSymbols ? 4 * kSlotThreads : stream.lanes;
  for (std::uint64_t i = 0; i < count; i += group) {
    if (i % run == 0) before(i);
    const auto here = static_cast<std::uint32_t>(count - i < group ? count - i : group);
    if (only < kMaxSymbols) {
      for (std::uint32_t j = block.thread(); j < here; j += kSlotThreads) take(i + j, only);
    } else if (!decode_slot_group(block, table, stream, i, here, take)) {
      return false;
    }
  }
  return true;
}

// The number that symbol 31 of the excess stands for. False where there is none.
THINWIRE_HOST_DEVICE bool long_number(SlotBytes& in, std::uint32_t& number) {
  constexpr std::uint32_t kMost = 1u << 22;
  std::uint64_t sum = 0;
  for (int shift = 0;; shift += 7) {
    const std::uint32_t byte = in.byte();
    sum |= std::uint64_t{byte & 127} << shift;
    if ((byte & 128) == 0) {
      if (byte == 0 && shift > 0) return false;
      break;
    }
    if (shift > 21) return false;
  }
  sum += kMaxSymbols - 1;
  number = static_cast<std::uint32_t>(sum);
  return !in.over && sum <= kMost;
}

// What is read of a slot, but for its state.
template <typename Context>
class SlotReader {
 public:
  THINWIRE_HOST_DEVICE SlotReader(Context& block, ReadShared& shared, const kernels::Slot& slot)
      : block_(block), shared_(shared), slot_(slot) {}

  THINWIRE_HOST_DEVICE kernels::SlotFault read(float& step) {
    using kernels::SlotFault;
    step = 0;
    if (!find_payload()) return SlotFault::kSize;
    SlotBytes in{slot_.payload, 4, bytes_};
    step = kernels::float_of(in.word());
    if (!walk_parts(in)) return SlotFault::kParts;
    if (any_ && !(step > 0 && kernels::is_finite(step))) return SlotFault::kStep;
    const std::uint32_t excess_weights = in.byte();
    const std::uint64_t excess_table = in.at;
    SlotBytes numbers{slot_.payload, 0, 0};
    if (excess_weights > 0) {
      if (!any_ || !skip_weights(in, excess_weights, kMaxSymbols)) return SlotFault::kExcess;
      const std::uint32_t long_bytes = in.word();
      numbers = {slot_.payload, in.at, in.at + long_bytes};
      in.skip(long_bytes);
    }
    if (in.over) return SlotFault::kExcess;
    if (!any_) return in.at == bytes_ ? SlotFault::kNone : SlotFault::kStream;
    SlotStream stream;
    if (!open_stream(block_, stream, slot_.payload + in.at, bytes_ - in.at, symbols_) ||
        !read_parts(stream)) {
      return SlotFault::kStream;
    }
    if ((excess_ > 0) != (excess_weights > 0)) return SlotFault::kExcess;
    if (excess_ > 0) {
      PartHead head;
      head.weights = excess_weights;
      head.table = excess_table;
      if (!read_excess(stream, head)) return SlotFault::kStream;
    }
    if (!stream_ends(block_, stream)) return SlotFault::kStream;
    if (excess_ > 0 && !add_long_numbers(numbers)) return SlotFault::kExcess;
    return numbers.at == numbers.end ? SlotFault::kNone : SlotFault::kExcess;
  }

 private:
  // The payload's bytes, behind which all is zero.
  THINWIRE_HOST_DEVICE bool find_payload() {
    SlotBytes size{slot_.payload, 0, slot_.bytes};
    bytes_ = size.word();
    if (size.over || bytes_ > slot_.bytes || bytes_ < 8) return false;
    bool zero = true;
    for (std::uint64_t i = bytes_ + block_.thread(); i < slot_.bytes; i += kSlotThreads) {
      zero = zero && slot_.payload[i] == std::byte{0};
    }
    return block_.ballot(!zero) == 0;
  }

  // Kinds and centroids of the parts, and how many symbols there are.
  THINWIRE_HOST_DEVICE bool walk_parts(SlotBytes& in) {
    constexpr std::uint32_t kNone = ~0u;
    std::uint32_t of_codes = kNone, of_pairs = kNone;  // the centroids of the last table
    first_part_ = in.at;
    for (std::uint32_t p = 0; p < slot_.count; ++p) {
      PartHead head;
      if (!read_head(in, head)) return false;
      if (head.coded()) {
        if (head.own()) (head.paired() ? of_pairs : of_codes) = head.centroids;
        head.centroids = head.paired() ? of_pairs : of_codes;
        if (head.centroids == kNone) return false;
        const std::uint64_t numel = slot_.parts[p].numel;
        symbols_ += head.paired() ? (numel + 1) / 2 : numel;
        any_ = true;
      }
      if (block_.thread() == 0) slot_.read[p] = {head.kind, head.centroids};
    }
    return true;
  }

  THINWIRE_HOST_DEVICE bool read_parts(SlotStream& stream) {
    std::uint32_t only_code = kMaxSymbols, only_pair = kMaxSymbols;
    SlotBytes in{slot_.payload, first_part_, bytes_};
    for (std::uint32_t p = 0; p < slot_.count; ++p) {
      PartHead head;
      read_head(in, head);
      if (!head.coded()) continue;
      const bool paired = head.paired();
      SlotTable& table = shared_.tables[paired ? 1 : 0];
      if (head.own()) {
        const std::uint32_t only =
            make_table(block_, shared_.table, table,
                       weight_of_part(block_, shared_.table, slot_.payload, head));
        (paired ? only_pair : only_code) = only;
      }
      if (!read_part(slot_.parts[p], paired, table, paired ? only_pair : only_code, stream)) {
        return false;
      }
    }
    return true;
  }

  THINWIRE_HOST_DEVICE bool read_part(const kernels::SlotPart& part, bool paired,
                                      const SlotTable& table, std::uint32_t only,
                                      SlotStream& stream) {
    std::uint8_t* symbols = slot_.symbols + part.first;
    std::uint32_t at_bound = 0;  // of this thread's, since the last tile began
    bool odd = false;
    const std::uint32_t run = paired ? kernels::kSlotTile / 2 : kernels::kSlotTile;
    // Also what has to come between making a table and reading it.
    const auto before = [&](std::uint64_t i) {
      add_to_excess(at_bound);
      at_bound = 0;
      if (block_.thread() == 0) {
        slot_.before[part.first_tile + i / run] = static_cast<std::uint32_t>(excess_);
      }
    };
    bool read = false;
    if (!paired) {
      read = decode_segment(block_, table, only, stream, part.numel, run, before,
                            [&](std::uint64_t i, std::uint32_t symbol) {
                              symbols[i] = static_cast<std::uint8_t>(symbol);
                              if (symbol >= kSymbolsOfCodes - 2) ++at_bound;
                            });
    } else {
      read = decode_segment(block_, table, only, stream, (std::uint64_t{part.numel} + 1) / 2, run,
                            before, [&](std::uint64_t i, std::uint32_t symbol) {
                              const std::uint32_t first = symbol / kCodesOfPairs;
                              const std::uint32_t second = symbol % kCodesOfPairs;
                              symbols[2 * i] = static_cast<std::uint8_t>(first);
                              if (first >= kCodesOfPairs - 2) ++at_bound;
                              if (2 * i + 1 == part.numel) {
                                odd = second != 0;
                                return;
                              }
                              symbols[2 * i + 1] = static_cast<std::uint8_t>(second);
                              if (second >= kCodesOfPairs - 2) ++at_bound;
                            });
    }
    add_to_excess(at_bound);
    return read && block_.ballot(odd) == 0;
  }

  // Adds what the threads have met. Two lists in turn: who is a call ahead writes to the other.
  THINWIRE_HOST_DEVICE void add_to_excess(std::uint32_t mine) {
    std::uint32_t* reached = shared_.reached[turn_];
    turn_ ^= 1;
    reached[block_.thread()] = mine;
    block_.sync();
    for (std::uint32_t t = 0; t < kSlotThreads; ++t) excess_ += reached[t];
  }

  THINWIRE_HOST_DEVICE bool read_excess(SlotStream& stream, const PartHead& head) {
    SlotTable& table = shared_.tables[0];
    const std::uint32_t only = make_table(
        block_, shared_.table, table, weight_of_part(block_, shared_.table, slot_.payload, head));
    block_.sync();
    const bool read = decode_segment(
        block_, table, only, stream, excess_, 4 * kSlotThreads, [](std::uint64_t) {},
        [&](std::uint64_t i, std::uint32_t symbol) { slot_.excess[i] = symbol; });
    block_.sync();
    return read;
  }

  // In place of the symbols that stand for them.
  THINWIRE_HOST_DEVICE bool add_long_numbers(SlotBytes& numbers) {
    for (std::uint64_t i = 0; i < excess_; i += kSlotThreads) {
      const std::uint64_t mine = i + block_.thread();
      std::uint32_t longs = block_.ballot(mine < excess_ && slot_.excess[mine] == kMaxSymbols - 1);
      for (std::uint32_t t = 0; longs != 0; ++t, longs >>= 1) {
        if ((longs & 1) == 0) continue;
        std::uint32_t number = 0;
        if (!long_number(numbers, number)) return false;
        if (block_.thread() == t) slot_.excess[mine] = number;
      }
    }
    return true;
  }

  Context& block_;
  ReadShared& shared_;
  const kernels::Slot& slot_;
  std::uint64_t bytes_ = 0;       // of the payload
  std::uint64_t first_part_ = 0;  // where that is in it
  std::uint64_t symbols_ = 0, excess_ = 0;
  bool any_ = false;  // part has codes
  int turn_ = 0;
};

// One slot, by kSlotThreads threads.
template <typename Context>
THINWIRE_HOST_DEVICE void read_slot(Context& block, ReadShared& shared, const kernels::Slot& slot) {
  float step = 0;
  SlotReader<Context> reader(block, shared, slot);
  const kernels::SlotFault fault = reader.read(step);
  if (block.thread() == 0) *slot.state = {step, fault};
}

}  // namespace thinwire::entropy
