#include "thinwire/compressors/entropy/dead_zone.h"

#include <algorithm>

#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/dead_zone_ref.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/entropy/dead_zone_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/entropy/table_lookup-inl.h"
#include "thinwire/compressors/kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::entropy {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Each returns how many elements it did, a multiple of two; the reference does the rest.
#if THINWIRE_HAS_TABLE_LOOKUP

using DF = hn::RebindToFloat<DI>;
using D8 = hn::Rebind<std::uint8_t, DI>;

// Of values whose integer part fits 31 bits: the conversion of Highway looks for others.
HWY_INLINE hn::Vec<DI> Truncated(hn::Vec<DF> values) {
#if HWY_TARGET <= HWY_AVX3
  return hn::Vec<DI>{_mm512_cvttps_epi32(values.raw)};
#else
  return hn::Vec<DI>{_mm256_cvttps_epi32(values.raw)};
#endif
}

std::size_t Quantise(const float* x, std::size_t n, const DeadZone& zone, std::uint8_t* symbols,
                     std::uint32_t* excess, QuantisedSums& sums) {
  const DI di;
  const DU du;
  const DF df;
  const D8 d8;
  const auto magnitude_bits = hn::Set(di, 0x7FFFFFFF);
  const auto inverse = hn::Set(df, zone.inverse_step);
  const auto rounding = hn::Set(df, zone.rounding);
  const auto most = hn::Set(df, kLargestMagnitude);
  const auto scale = hn::Set(df, 256.0f);
  const auto bound = hn::Set(di, zone.bound);
  const auto zero = hn::Zero(di);
  const auto one = hn::Set(di, 1);
  const auto two = hn::Set(di, 2);
  auto largest = zero;
  // Of m = 1, m = 2 and m ≥ 1.
  hn::Vec<DI> count[kCentroids] = {zero, zero, zero}, fraction[kCentroids] = {zero, zero, zero};
  std::uint32_t* out = excess + sums.excess;
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto bits = hn::BitCast(di, hn::LoadU(df, x + i));
    const auto absolute = hn::And(bits, magnitude_bits);
    largest = hn::Max(largest, absolute);
    const auto scaled = hn::Min(hn::Mul(hn::BitCast(df, absolute), inverse), most);
    const auto magnitude = Truncated(hn::Add(scaled, rounding));
    const auto rest = Truncated(hn::Mul(hn::Sub(scaled, hn::ConvertTo(df, magnitude)), scale));
    const auto nonzero = hn::Gt(magnitude, zero);
    const hn::Mask<DI> of[kCentroids] = {hn::Eq(magnitude, one), hn::Eq(magnitude, two), nonzero};
    for (std::size_t c = 0; c < kCentroids; ++c) {
      count[c] = hn::IfThenElse(of[c], hn::Add(count[c], one), count[c]);
      fraction[c] = hn::IfThenElse(of[c], hn::Add(fraction[c], rest), fraction[c]);
    }
    const auto limited = hn::Min(magnitude, bound);
    // 1 for positive values.
    const auto positive = hn::Add(hn::ShiftRight<31>(bits), one);
    const auto twice = hn::Add(limited, limited);
    const auto symbol = hn::IfThenElse(nonzero, hn::Sub(twice, positive), twice);
    hn::StoreU(hn::TruncateTo(d8, hn::BitCast(du, symbol)), d8, symbols + i);
    const auto beyond = hn::Not(hn::Lt(magnitude, bound));
    if (!hn::AllFalse(di, beyond)) {
      hn::StoreU(hn::BitCast(du, hn::Compress(hn::Sub(magnitude, bound), beyond)), du, out);
      out += hn::CountTrue(di, beyond);
    }
  }
  const auto of_all = [&](hn::Vec<DI> lanes)
                          HWY_ATTR { return std::int64_t{hn::GetLane(hn::SumOfLanes(di, lanes))}; };
  const std::int64_t counted[] = {of_all(count[0]), of_all(count[1]), of_all(count[2])};
  const std::int64_t summed[] = {of_all(fraction[0]), of_all(fraction[1]), of_all(fraction[2])};
  for (std::size_t c = 0; c < kCentroids; ++c) {
    const bool rest = c + 1 == kCentroids;
    sums.count[c] += counted[c] - (rest ? counted[0] + counted[1] : 0);
    sums.fraction[c] += summed[c] - (rest ? summed[0] + summed[1] : 0);
  }
  sums.excess = static_cast<std::size_t>(out - excess);
  if (!hn::AllFalse(di, hn::Gt(largest, hn::Set(di, 0x7F7FFFFF)))) sums.finite = false;
  return i;
}

template <Apply kApply>
std::size_t ApplyAs(const std::uint8_t* symbols, const float*& beyond, const Levels& levels,
                    float* values, std::size_t n) {
  const DI di;
  const DF df;
  const D8 d8;
  const DU du;
  std::uint32_t bits[32];
  for (std::size_t s = 0; s < 32; ++s) {
    bits[s] = std::bit_cast<std::uint32_t>(levels.of_symbol[s]);
  }
  const LaneTable<true> level_of(bits);
  const auto last = hn::Set(di, 2 * levels.bound - 1);
  const float* next = beyond;
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto symbol = hn::PromoteTo(di, hn::LoadU(d8, symbols + i));
    auto level = level_of.At(symbol);
    const auto is_beyond = hn::Not(hn::Lt(symbol, last));
    if (!hn::AllFalse(di, is_beyond)) {
      const auto loaded = Expand(hn::BitCast(di, hn::LoadU(df, next)), is_beyond);
      next += hn::CountTrue(di, is_beyond);
      // The sign bit is that of the symbol's oddness, turned around.
      const auto sign =
          hn::BitCast(di, hn::ShiftLeft<31>(hn::BitCast(du, hn::Add(symbol, hn::Set(di, 1)))));
      level = hn::IfThenElse(is_beyond, hn::Or(loaded, sign), level);
    }
    auto value = hn::BitCast(df, level);
    if constexpr (kApply == Apply::kAdd) value = hn::Add(hn::LoadU(df, values + i), value);
    if constexpr (kApply == Apply::kSubtract) value = hn::Sub(hn::LoadU(df, values + i), value);
    hn::StoreU(value, df, values + i);
  }
  beyond = next;
  return i;
}

std::size_t ApplyLevels(const std::uint8_t* symbols, const float*& beyond, const Levels& levels,
                        Apply apply, float* values, std::size_t n) {
  switch (apply) {
    case Apply::kAssign:
      return ApplyAs<Apply::kAssign>(symbols, beyond, levels, values, n);
    case Apply::kAdd:
      return ApplyAs<Apply::kAdd>(symbols, beyond, levels, values, n);
    case Apply::kSubtract:
      return ApplyAs<Apply::kSubtract>(symbols, beyond, levels, values, n);
  }
  return 0;
}

#else

std::size_t Quantise(const float*, std::size_t, const DeadZone&, std::uint8_t*, std::uint32_t*,
                     QuantisedSums&) {
  return 0;
}

std::size_t ApplyLevels(const std::uint8_t*, const float*&, const Levels&, Apply, float*,
                        std::size_t) {
  return 0;
}

#endif

std::size_t JoinPairs(const std::uint8_t* symbols, std::size_t n, std::uint8_t* pairs) {
  const hn::ScalableTag<std::uint16_t> d16;
  const hn::Rebind<std::uint8_t, decltype(d16)> d8;
  const std::size_t step = 2 * hn::Lanes(d16);
  const auto low = hn::Set(d16, std::uint16_t{0xFF});
  const auto five = hn::Set(d16, std::uint16_t{5});
  std::size_t i = 0;
  for (; i + step <= n; i += step) {
    const auto both = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(symbols + i));
    const auto pair = hn::Add(hn::Mul(hn::And(both, low), five), hn::ShiftRight<8>(both));
    hn::StoreU(hn::TruncateTo(d8, pair), d8, pairs + i / 2);
  }
  return i;
}

std::size_t SplitPairs(const std::uint8_t* pairs, std::uint8_t* symbols, std::size_t n) {
  const hn::ScalableTag<std::uint16_t> d16;
  const hn::Rebind<std::uint8_t, decltype(d16)> d8;
  const std::size_t step = 2 * hn::Lanes(d16);
  const auto fifth = hn::Set(d16, std::uint16_t{52});  // ⌊52 p / 256⌋ = ⌊p / 5⌋ for p < 25
  const auto five = hn::Set(d16, std::uint16_t{5});
  std::size_t i = 0;
  for (; i + step <= n; i += step) {
    const auto pair = hn::PromoteTo(d16, hn::LoadU(d8, pairs + i / 2));
    const auto first = hn::ShiftRight<8>(hn::Mul(pair, fifth));
    const auto second = hn::Sub(pair, hn::Mul(first, five));
    hn::StoreU(hn::Or(first, hn::ShiftLeft<8>(second)), d16,
               reinterpret_cast<std::uint16_t*>(symbols + i));
  }
  return i;
}

std::size_t AtLeast(const std::uint8_t* symbols, std::size_t n, std::uint8_t least) {
  const hn::ScalableTag<std::uint8_t> d8;
  const std::size_t lanes = hn::Lanes(d8);
  const auto bound = hn::Set(d8, least);
  std::size_t count = 0;
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto v = hn::LoadU(d8, symbols + i);
    count += hn::CountTrue(d8, hn::Eq(hn::Max(v, bound), v));
  }
  for (; i < n; ++i) count += symbols[i] >= least ? 1 : 0;
  return count;
}

// Compares a block in the first-level cache with one symbol after another, until all are found:
// small symbols are nearly all of them, and a table in memory takes a load and a store each.
void CountSymbols(const std::uint8_t* symbols, std::size_t n, std::uint32_t* counts) {
  constexpr std::size_t kBlock = 4096;
  const hn::ScalableTag<std::uint8_t> d8;
  const std::size_t lanes = hn::Lanes(d8);
  std::size_t i = 0;
  for (; i + 4 * lanes <= n;) {
    const std::size_t end = i + std::min(kBlock, (n - i) / (4 * lanes) * (4 * lanes));
    std::size_t left = end - i;
    for (std::size_t s = 0; s < 32 && left > 0; ++s) {
      const auto symbol = hn::Set(d8, static_cast<std::uint8_t>(s));
      std::size_t found = 0;
      for (std::size_t at = i; at < end; at += 4 * lanes) {
        const auto in = [&](std::size_t k) HWY_ATTR {
          return hn::CountTrue(d8, hn::Eq(hn::LoadU(d8, symbols + at + k * lanes), symbol));
        };
        found += in(0) + in(1) + in(2) + in(3);
      }
      counts[s] += static_cast<std::uint32_t>(found);
      left -= found;
    }
    i = end;
  }
  for (; i < n; ++i) ++counts[symbols[i]];
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::entropy
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::entropy {

HWY_EXPORT(Quantise);
HWY_EXPORT(ApplyLevels);
HWY_EXPORT(JoinPairs);
HWY_EXPORT(SplitPairs);
HWY_EXPORT(AtLeast);
HWY_EXPORT(CountSymbols);

void quantise(std::span<const float> values, const DeadZone& zone, std::uint8_t* symbols,
              std::uint32_t* excess, QuantisedSums& sums) {
  THINWIRE_ASSERT(values.size() <= kMaxQuantised);
  const std::size_t done =
      THINWIRE_DISPATCH(Quantise)(values.data(), values.size(), zone, symbols, excess, sums);
  ref::quantise(values.subspan(done), zone, symbols + done, excess, sums);
}

void apply_levels(const std::uint8_t* symbols, const float* beyond, const Levels& levels,
                  Apply apply, std::span<float> values) {
  const std::size_t done =
      THINWIRE_DISPATCH(ApplyLevels)(symbols, beyond, levels, apply, values.data(), values.size());
  ref::apply_levels(symbols + done, beyond, levels, apply, values.subspan(done));
}

void join_pairs(std::span<const std::uint8_t> symbols, std::uint8_t* pairs) {
  const std::size_t done = THINWIRE_DISPATCH(JoinPairs)(symbols.data(), symbols.size(), pairs);
  ref::join_pairs(symbols.subspan(done), pairs + done / 2);
}

bool split_pairs(const std::uint8_t* pairs, std::span<std::uint8_t> symbols) {
  const std::size_t done = THINWIRE_DISPATCH(SplitPairs)(pairs, symbols.data(), symbols.size());
  return ref::split_pairs(pairs + done / 2, symbols.subspan(done));
}

std::array<std::uint32_t, 32> count_symbols(std::span<const std::uint8_t> symbols) {
  std::array<std::uint32_t, 32> counts{};
  THINWIRE_DISPATCH(CountSymbols)(symbols.data(), symbols.size(), counts.data());
  return counts;
}

std::size_t at_least(std::span<const std::uint8_t> symbols, std::uint8_t least) {
  return THINWIRE_DISPATCH(AtLeast)(symbols.data(), symbols.size(), least);
}

}  // namespace thinwire::entropy
#endif  // HWY_ONCE
