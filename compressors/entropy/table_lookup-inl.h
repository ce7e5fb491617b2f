// Tables of 16 or 32 numbers in registers. Included once per SIMD target; targets with fewer than
// eight lanes have none and set THINWIRE_HAS_TABLE_LOOKUP to 0.

#if defined(THINWIRE_COMPRESSORS_ENTROPY_TABLE_LOOKUP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_COMPRESSORS_ENTROPY_TABLE_LOOKUP_INL_H_
#undef THINWIRE_COMPRESSORS_ENTROPY_TABLE_LOOKUP_INL_H_
#else
#define THINWIRE_COMPRESSORS_ENTROPY_TABLE_LOOKUP_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "thinwire/compressors/entropy/symbol_table.h"

#undef THINWIRE_HAS_TABLE_LOOKUP
#if HWY_TARGET <= HWY_AVX2
#define THINWIRE_HAS_TABLE_LOOKUP 1
#else
#define THINWIRE_HAS_TABLE_LOOKUP 0
#endif

#if THINWIRE_HAS_TABLE_LOOKUP
HWY_BEFORE_NAMESPACE();
namespace thinwire::entropy {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Everything in the coder is below 2^31; signed comparisons are the cheaper ones.
using DI = hn::CappedTag<std::int32_t, 16>;
using DU = hn::RebindToUnsigned<DI>;
constexpr std::size_t kLanes = hn::MaxLanes(DI());

HWY_INLINE hn::Vec<DI> LoadTable(const std::uint32_t* from) {
  return hn::BitCast(DI(), hn::LoadU(DU(), from));
}

// table[index] for an index below 16, or 32 where kWide.
template <bool kWide>
class LaneTable {
 public:
#if HWY_TARGET <= HWY_AVX3
  explicit HWY_INLINE LaneTable(const std::uint32_t* table)
      : low_(LoadTable(table)), high_(LoadTable(table + (kWide ? 16 : 0))) {}

  HWY_INLINE hn::Vec<DI> At(hn::Vec<DI> index) const {
    if constexpr (kWide) {
      return hn::Vec<DI>{_mm512_permutex2var_epi32(low_.raw, index.raw, high_.raw)};
    }
    return hn::Vec<DI>{_mm512_permutexvar_epi32(index.raw, low_.raw)};
  }

 private:
  hn::Vec<DI> low_, high_;
#else
  explicit HWY_INLINE LaneTable(const std::uint32_t* table) {
    for (std::size_t i = 0; i < kParts; ++i) parts_[i] = LoadTable(table + 8 * i);
  }

  HWY_INLINE hn::Vec<DI> At(hn::Vec<DI> index) const {
    const auto low = Sixteen(index, 0);
    if constexpr (kWide) {
      return hn::IfThenElse(hn::Gt(index, hn::Set(DI(), 15)), Sixteen(index, 2), low);
    }
    return low;
  }

 private:
  static constexpr std::size_t kParts = kWide ? 4 : 2;
  HWY_INLINE hn::Vec<DI> Sixteen(hn::Vec<DI> index, std::size_t part) const {
    const DI di;
    const auto low = hn::Vec<DI>{_mm256_permutevar8x32_epi32(parts_[part].raw, index.raw)};
    const auto high = hn::Vec<DI>{_mm256_permutevar8x32_epi32(parts_[part + 1].raw, index.raw)};
    return hn::IfThenElse(hn::Ne(hn::And(index, hn::Set(di, 8)), hn::Zero(di)), high, low);
  }

  hn::Vec<DI> parts_[kParts];
#endif
};

// The last slot before each symbol. Comparing for more than that, not for less than the first one,
// is what masked additions want.
struct SlotsBefore {
  explicit HWY_INLINE SlotsBefore(const SymbolTable& table) {
    for (std::size_t s = 0; s < symbol.size(); ++s) symbol[s] = table.start[s] - 1;
  }
  alignas(64) std::array<std::uint32_t, kMaxSymbols + 16> symbol;
};

// The largest s with start[s] ≤ slot: halving, where the first steps compare with numbers that are
// the same in all lanes. D: of slots and symbols; Table: of 16 numbers, or 32 where kWide, by
// symbol.
template <class D, class Table, bool kWide>
class SlotSearch {
 public:
  explicit HWY_INLINE SlotSearch(const SlotsBefore& before)
      : middle_(Same(before.symbol[16])),
        eighth_(Same(before.symbol[8])),
        upper_(Same(before.symbol[24])),
        by4_(before.symbol.data() + 4),
        by2_(before.symbol.data() + 2),
        by1_(before.symbol.data() + 1) {}

  HWY_INLINE hn::Vec<D> Symbol(hn::Vec<D> slot) const {
    auto symbol = hn::Zero(D());
    auto bound = eighth_;
    if constexpr (kWide) {
      const auto above = hn::Gt(slot, middle_);
      symbol = hn::IfThenElseZero(above, Same(16));
      bound = hn::IfThenElse(above, upper_, eighth_);
    }
    symbol = Step(slot, bound, symbol, 8);
    symbol = Step(slot, by4_.At(symbol), symbol, 4);
    symbol = Step(slot, by2_.At(symbol), symbol, 2);
    return Step(slot, by1_.At(symbol), symbol, 1);
  }

 private:
  static HWY_INLINE hn::Vec<D> Same(std::uint32_t value) {
    return hn::Set(D(), static_cast<hn::TFromD<D>>(value));
  }
  static HWY_INLINE hn::Vec<D> Step(hn::Vec<D> slot, hn::Vec<D> bound, hn::Vec<D> symbol,
                                    std::uint32_t step) {
    return hn::IfThenElse(hn::Gt(slot, bound), hn::Add(symbol, Same(step)), symbol);
  }

  hn::Vec<D> middle_, eighth_, upper_;
  Table by4_, by2_, by1_;
};

#if HWY_TARGET <= HWY_AVX3
// Two vectors of numbers below 2^15 in one, those of the second in the upper halves of the lanes: a
// comparison or a lookup then serves both, and they are put together and taken apart by shifts.
using DP = hn::Repartition<std::int16_t, DI>;

HWY_INLINE hn::Vec<DP> Pair(hn::Vec<DI> first, hn::Vec<DI> second) {
  return hn::BitCast(DP(), hn::Or(first, hn::ShiftLeft<16>(second)));
}
HWY_INLINE hn::Vec<DI> FirstOf(hn::Vec<DP> pair) {
  return hn::And(hn::BitCast(DI(), pair), hn::Set(DI(), 0xFFFF));
}
HWY_INLINE hn::Vec<DI> SecondOf(hn::Vec<DP> pair) {
  return hn::ShiftRight<16>(hn::BitCast(DI(), pair));
}

// Of 32 numbers.
class PairTable {
 public:
  explicit HWY_INLINE PairTable(const std::uint32_t* numbers)
      : PairTable([numbers](std::size_t i) { return numbers[i]; }) {}
  // of(i) for a lane with i.
  template <typename Of>
  explicit HWY_INLINE PairTable(const Of& of) {
    HWY_ALIGN std::int16_t numbers[32];
    for (std::size_t i = 0; i < 32; ++i) numbers[i] = static_cast<std::int16_t>(of(i));
    table_ = hn::Load(DP(), numbers);
  }
  HWY_INLINE hn::Vec<DP> At(hn::Vec<DP> index) const {
    return hn::Vec<DP>{_mm512_permutexvar_epi16(index.raw, table_.raw)};
  }

 private:
  hn::Vec<DP> table_;
};
#endif

// Lane i of the result, where the mask is set, is the n-th of `values`, n being the number of set
// lanes before it; 0 in the others.
HWY_INLINE hn::Vec<DI> Expand(hn::Vec<DI> values, hn::Mask<DI> mask) {
#if HWY_TARGET <= HWY_AVX3
  return hn::Vec<DI>{_mm512_maskz_expand_epi32(mask.raw, values.raw)};
#else
  // The mask as the bytes of one number, whose product with 0x01…01 adds up those before each.
  const DI di;
  const hn::Rebind<std::uint8_t, DI> d8;
  std::uint8_t bits = 0;
  hn::StoreMaskBits(di, mask, &bits);
  const std::uint64_t bytes = _pdep_u64(bits, 0x0101010101010101u);
  const std::uint64_t before = bytes * 0x0101010101010101u << 8;
  const auto index =
      hn::PromoteTo(di, hn::LoadU(d8, reinterpret_cast<const std::uint8_t*>(&before)));
  return hn::IfThenElseZero(mask, hn::Vec<DI>{_mm256_permutevar8x32_epi32(values.raw, index.raw)});
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::entropy
HWY_AFTER_NAMESPACE();
#endif

#endif
