#include "thinwire/compressors/entropy/rans.h"

#include <algorithm>
#include <type_traits>

#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/rans_ref.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/entropy/rans_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/entropy/table_lookup-inl.h"
#include "thinwire/compressors/kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::entropy {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Both work on whole groups and stop where the next group might not have room, or words; they
// return the number of groups done. Encoding goes from the last group to the first.
#if THINWIRE_HAS_TABLE_LOOKUP

// ⌊x / frequency⌋, see SymbolTable::packed.
HWY_INLINE hn::Vec<DI> Quotient(hn::Vec<DI> x, hn::Vec<DI> reciprocal, hn::Vec<DI> packed) {
  const DU du;
  const hn::Repartition<std::uint64_t, DU> du64;
  const auto twice = hn::BitCast(du, hn::Add(x, x));
  const auto r = hn::BitCast(du, reciprocal);
  const auto even = hn::MulEven(twice, r);
  const auto odd = hn::MulEven(hn::BitCast(du, hn::ShiftRight<32>(hn::BitCast(du64, twice))),
                               hn::BitCast(du, hn::ShiftRight<32>(hn::BitCast(du64, r))));
  const auto high = hn::OddEven(hn::BitCast(du, odd), hn::BitCast(du, hn::ShiftRight<32>(even)));
  return hn::BitCast(DI(), hn::Shr(high, hn::ShiftRight<28>(hn::BitCast(du, packed))));
}

template <int kVectors, bool kWide>
std::size_t EncodeGroups(const SymbolTable& table, const std::uint8_t* symbols, std::size_t groups,
                         std::uint32_t* states, std::byte*& out, const std::byte* end) {
  const DI di;
  const DU du;
  const hn::Rebind<std::uint8_t, DI> d8;
  const hn::Rebind<std::uint16_t, DU> d16;
  constexpr std::size_t kGroup = kVectors * kLanes;
  const LaneTable<kWide> packed_of(table.packed.data());
  const LaneTable<kWide> reciprocal_of(table.reciprocal.data());
  const auto total = hn::Set(di, static_cast<std::int32_t>(kTableTotal));
  const auto low14 = hn::Set(di, static_cast<std::int32_t>(kTableTotal - 1));
  const auto one = hn::Set(di, 1);
  hn::Vec<DI> x[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    x[v] = hn::BitCast(di, hn::Load(du, states + static_cast<std::size_t>(v) * kLanes));
  }
  std::byte* at = out;
  std::size_t done = 0;
  for (; done < groups; ++done) {
    // A store writes a whole vector of words, of which the next overwrites what did not count.
    if (end - at < static_cast<std::ptrdiff_t>(2 * (kGroup + kLanes))) break;
    const std::uint8_t* group = symbols + (groups - done - 1) * kGroup;
    for (int v = 0; v < kVectors; ++v) {
      const auto symbol =
          hn::PromoteTo(di, hn::LoadU(d8, group + static_cast<std::size_t>(v) * kLanes));
      const auto packed = packed_of.At(symbol);
      const auto frequency = hn::And(hn::ShiftRight<14>(packed), low14);
      const auto full = hn::Gt(hn::ShiftRight<31 - kTableBits>(x[v]), hn::Sub(frequency, one));
      const auto words = hn::TruncateTo(d16, hn::BitCast(du, hn::Compress(x[v], full)));
      hn::StoreU(words, d16, reinterpret_cast<std::uint16_t*>(at));
      at += ref::kWordBytes * hn::CountTrue(di, full);
      const auto rest = hn::IfThenElse(full, hn::ShiftRight<16>(x[v]), x[v]);
      const auto quotient = Quotient(rest, reciprocal_of.At(symbol), packed);
      x[v] = hn::Add(hn::Add(rest, hn::And(packed, low14)),
                     hn::Mul(quotient, hn::Sub(total, frequency)));
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    hn::Store(hn::BitCast(du, x[v]), du, states + static_cast<std::size_t>(v) * kLanes);
  }
  out = at;
  return done;
}

HWY_INLINE void StoreSymbols(hn::Vec<DI> symbols, std::uint8_t* to) {
  const DU du;
  const hn::Rebind<std::uint8_t, DU> d8;
  hn::StoreU(hn::TruncateTo(d8, hn::BitCast(du, symbols)), d8, to);
}

// The words that are due, from before `at`, which moves there. Where kChecked there may be fewer
// than that: false then.
template <bool kChecked>
HWY_INLINE bool Refill(hn::Vec<DI>& x, const std::byte* begin, const std::byte*& at) {
  const DI di;
  const DU du;
  const hn::Rebind<std::uint16_t, DU> d16;
  const auto due = hn::Lt(x, hn::Set(di, static_cast<std::int32_t>(kStateLow)));
  const auto bytes = static_cast<std::ptrdiff_t>(2 * hn::CountTrue(di, due));
  if (kChecked && at - begin < bytes) return false;
  at -= bytes;
  // The states behind the words are as long as any vector that is loaded from among these.
  const auto loaded = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(at));
  const auto word = Expand(hn::BitCast(di, hn::PromoteTo(du, loaded)), due);
  x = hn::IfThenElse(due, hn::Or(hn::ShiftLeft<16>(x), word), x);
  return true;
}

#if HWY_TARGET <= HWY_AVX3

// The symbols of a group, two vectors at a time.
template <int kVectors, bool kWide>
class GroupDecoder {
 public:
  static constexpr int kAtATime = 2;

  explicit HWY_INLINE GroupDecoder(const SymbolTable& table)
      : search_(SlotsBefore(table)),
        frequency_([&table](std::size_t i) { return table.packed[i] >> 14 & (kTableTotal - 1); }),
        start_([&table](std::size_t i) { return table.packed[i] & (kTableTotal - 1); }) {}

  HWY_INLINE void Step(hn::Vec<DI>* x, int v) {
    const auto low14 = hn::Set(DI(), static_cast<std::int32_t>(kTableTotal - 1));
    hn::Vec<DI>& first = x[v];
    hn::Vec<DI>& second = x[v + 1];
    const auto slot = Pair(hn::And(first, low14), hn::And(second, low14));
    const auto symbol = search_.Symbol(slot);
    const auto frequency = frequency_.At(symbol);
    const auto rest = hn::Sub(slot, start_.At(symbol));
    first = hn::Add(hn::Mul(FirstOf(frequency), hn::ShiftRight<kTableBits>(first)), FirstOf(rest));
    second =
        hn::Add(hn::Mul(SecondOf(frequency), hn::ShiftRight<kTableBits>(second)), SecondOf(rest));
    symbols_[v / 2] = symbol;
  }

  HWY_INLINE void Store(std::uint8_t* group) const {
    if constexpr (kVectors == 2) {
      StoreSymbols(FirstOf(symbols_[0]), group);
      StoreSymbols(SecondOf(symbols_[0]), group + kLanes);
    } else {
      for (std::size_t p = 0; p < kVectors / 2; p += 2)
        StoreFour(symbols_[p], symbols_[p + 1], group + 2 * p * kLanes);
    }
  }

 private:
  // Of four vectors, a and b, c and d: their bytes are a c b d in each lane.
  static HWY_INLINE void StoreFour(hn::Vec<DP> ab, hn::Vec<DP> cd, std::uint8_t* to) {
    const DI di;
    const hn::Repartition<std::uint8_t, DI> d8;
    HWY_ALIGN static constexpr std::uint8_t kBytes[16] = {0, 4, 8, 12, 2, 6, 10, 14,
                                                          1, 5, 9, 13, 3, 7, 11, 15};
    HWY_ALIGN static constexpr std::int32_t kLanesOf[16] = {0, 4, 8,  12, 1, 5, 9,  13,
                                                            2, 6, 10, 14, 3, 7, 11, 15};
    const auto bytes = hn::Or(hn::BitCast(di, ab), hn::ShiftLeft<8>(hn::BitCast(di, cd)));
    const auto sorted = hn::TableLookupBytes(hn::BitCast(d8, bytes), hn::LoadDup128(d8, kBytes));
    const auto lanes =
        hn::TableLookupLanes(hn::BitCast(di, sorted), hn::SetTableIndices(di, kLanesOf));
    hn::StoreU(hn::BitCast(d8, lanes), d8, to);
  }

  SlotSearch<DP, PairTable, kWide> search_;
  PairTable frequency_, start_;
  hn::Vec<DP> symbols_[kVectors / 2];
};

#else

template <int kVectors, bool kWide>
class GroupDecoder {
 public:
  static constexpr int kAtATime = 1;

  explicit HWY_INLINE GroupDecoder(const SymbolTable& table)
      : search_(SlotsBefore(table)), packed_of_(table.packed.data()) {}

  HWY_INLINE void Step(hn::Vec<DI>* x, int v) {
    const auto low14 = hn::Set(DI(), static_cast<std::int32_t>(kTableTotal - 1));
    const auto slot = hn::And(x[v], low14);
    symbols_[v] = search_.Symbol(slot);
    const auto packed = packed_of_.At(symbols_[v]);
    const auto frequency = hn::And(hn::ShiftRight<14>(packed), low14);
    x[v] = hn::Add(hn::Mul(frequency, hn::ShiftRight<kTableBits>(x[v])),
                   hn::Sub(slot, hn::And(packed, low14)));
  }

  HWY_INLINE void Store(std::uint8_t* group) const {
    for (std::size_t v = 0; v < kVectors; ++v) StoreSymbols(symbols_[v], group + v * kLanes);
  }

 private:
  SlotSearch<DI, LaneTable<kWide>, kWide> search_;
  LaneTable<kWide> packed_of_;
  hn::Vec<DI> symbols_[kVectors];
};

#endif

// A group's words lie in the order of its lanes and are read from the end. All its vectors find
// their symbols before any of them reads words: fewer instructions then wait for one another.
// Returns false where words are missing.
template <bool kChecked, int kVectors, class Decoder>
HWY_INLINE bool DecodeGroup(Decoder& decoder, hn::Vec<DI>* x, const std::byte* begin,
                            const std::byte*& at) {
  constexpr int kAtATime = Decoder::kAtATime;
  HWY_UNROLL(16)
  for (int v = kVectors - kAtATime; v >= 0; v -= kAtATime) decoder.Step(x, v);
  HWY_UNROLL(16)
  for (int v = kVectors - 1; v >= 0; --v) {
    if (!Refill<kChecked>(x[v], begin, at)) return false;
  }
  return true;
}

template <int kVectors, bool kWide>
std::size_t DecodeGroups(const SymbolTable& table, std::uint8_t* symbols, std::size_t groups,
                         std::uint32_t* states, const std::byte* begin, const std::byte*& in) {
  const DI di;
  const DU du;
  constexpr std::size_t kGroup = kVectors * kLanes;
  GroupDecoder<kVectors, kWide> decoder(table);
  hn::Vec<DI> x[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    x[v] = hn::BitCast(di, hn::Load(du, states + static_cast<std::size_t>(v) * kLanes));
  }
  const std::byte* at = in;
  std::size_t done = 0;
  for (; done < groups && at - begin >= static_cast<std::ptrdiff_t>(2 * kGroup); ++done) {
    DecodeGroup<false, kVectors>(decoder, x, begin, at);
    decoder.Store(symbols + done * kGroup);
  }
  for (; done < groups; ++done) {
    if (!DecodeGroup<true, kVectors>(decoder, x, begin, at)) {
      in = nullptr;
      return done;
    }
    decoder.Store(symbols + done * kGroup);
  }
  for (int v = 0; v < kVectors; ++v) {
    hn::Store(hn::BitCast(du, x[v]), du, states + static_cast<std::size_t>(v) * kLanes);
  }
  in = at;
  return groups;
}

// Calls run(constant number of vectors, constant whether there are more than 16 symbols).
template <typename Run>
std::size_t WithShape(const SymbolTable& table, int lanes, const Run& run) {
  constexpr std::integral_constant<int, 32 / static_cast<int>(kLanes)> kFew;
  constexpr std::integral_constant<int, 64 / static_cast<int>(kLanes)> kMany;
  const bool wide = table.last() >= 16;
  if (lanes == 32) return wide ? run(kFew, std::true_type()) : run(kFew, std::false_type());
  constexpr std::integral_constant<int, 128 / static_cast<int>(kLanes)> kMore;
  if (lanes == 128) return wide ? run(kMore, std::true_type()) : run(kMore, std::false_type());
  if (lanes == 64) return wide ? run(kMany, std::true_type()) : run(kMany, std::false_type());
  return 0;
}

std::size_t Encode(const SymbolTable& table, const std::uint8_t* symbols, std::size_t groups,
                   int lanes, std::uint32_t* states, std::byte*& out, const std::byte* end) {
  return WithShape(table, lanes, [&](const auto vectors, const auto wide) {
    return EncodeGroups<vectors(), wide()>(table, symbols, groups, states, out, end);
  });
}

std::size_t Decode(const SymbolTable& table, std::uint8_t* symbols, std::size_t groups, int lanes,
                   std::uint32_t* states, const std::byte* begin, const std::byte*& in) {
  return WithShape(table, lanes, [&](const auto vectors, const auto wide) {
    return DecodeGroups<vectors(), wide()>(table, symbols, groups, states, begin, in);
  });
}

#else  // vectors too short to hold a table: the reference

std::size_t Encode(const SymbolTable&, const std::uint8_t*, std::size_t, int, std::uint32_t*,
                   std::byte*&, const std::byte*) {
  return 0;
}

std::size_t Decode(const SymbolTable&, std::uint8_t*, std::size_t, int, std::uint32_t*,
                   const std::byte*, const std::byte*&) {
  return 0;
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::entropy
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::entropy {

HWY_EXPORT(Encode);
HWY_EXPORT(Decode);

RansEncoder::RansEncoder(std::span<std::byte> out, int lanes)
    : lanes_(lanes), begin_(out.data()), end_(out.data() + out.size()), at_(out.data()) {
  THINWIRE_ASSERT(lanes >= 1 && lanes <= kMaxLanes);
  states_.lane.fill(kStateLow);
}

bool RansEncoder::encode(const SymbolTable& table, std::span<const std::uint8_t> symbols) {
  if (table.constant()) return true;
  const auto lanes = static_cast<std::size_t>(lanes_);
  std::size_t groups = symbols.size() / lanes;
  const auto encode_group = [&](std::size_t first, std::size_t count) {
    if (static_cast<std::size_t>(end_ - at_) < count * ref::kWordBytes) return false;
    at_ = ref::encode_group(table, symbols.data() + first, count, states_.lane.data(), at_);
    return true;
  };
  if (!encode_group(groups * lanes, symbols.size() % lanes)) return false;
  groups -= THINWIRE_DISPATCH(Encode)(table, symbols.data(), groups, lanes_, states_.lane.data(),
                                      at_, end_);
  for (; groups > 0; --groups) {
    if (!encode_group((groups - 1) * lanes, lanes)) return false;
  }
  return true;
}

std::size_t RansEncoder::finish() {
  const std::size_t bytes = static_cast<std::size_t>(lanes_) * sizeof(std::uint32_t);
  if (static_cast<std::size_t>(end_ - at_) < bytes) return 0;
  std::memcpy(at_, states_.lane.data(), bytes);
  at_ += bytes;
  return static_cast<std::size_t>(at_ - begin_);
}

RansDecoder::RansDecoder(std::span<const std::byte> in, int lanes)
    : lanes_(lanes), begin_(in.data()), at_(in.data()) {
  THINWIRE_ASSERT(lanes >= 1 && lanes <= kMaxLanes);
  states_.lane.fill(0);
  const std::size_t bytes = static_cast<std::size_t>(lanes) * sizeof(std::uint32_t);
  valid_ = in.size() >= bytes;
  if (!valid_) return;
  at_ = in.data() + (in.size() - bytes);
  std::memcpy(states_.lane.data(), at_, bytes);
  valid_ = std::ranges::all_of(std::span(states_.lane).first(static_cast<std::size_t>(lanes)),
                               [](auto x) { return x >= kStateLow && x < kStateLow << 16; });
}

bool RansDecoder::decode(const SymbolTable& table, std::span<std::uint8_t> symbols) {
  if (!valid_) return false;
  if (table.constant()) {
    std::ranges::fill(symbols, static_cast<std::uint8_t>(table.last()));
    return true;
  }
  const auto lanes = static_cast<std::size_t>(lanes_);
  const std::size_t groups = symbols.size() / lanes;
  std::size_t first = lanes * THINWIRE_DISPATCH(Decode)(table, symbols.data(), groups, lanes_,
                                                        states_.lane.data(), begin_, at_);
  if (at_ == nullptr) return valid_ = false;
  while (first < symbols.size()) {
    const std::size_t count = std::min(lanes, symbols.size() - first);
    at_ = ref::decode_group(table, symbols.data() + first, count, states_.lane.data(), begin_, at_);
    if (at_ == nullptr) return valid_ = false;
    first += count;
  }
  return true;
}

bool RansDecoder::finished() const {
  return valid_ && at_ == begin_ &&
         std::ranges::all_of(std::span(states_.lane).first(static_cast<std::size_t>(lanes_)),
                             [](auto x) { return x == kStateLow; });
}

}  // namespace thinwire::entropy
#endif  // HWY_ONCE
