// Quantising and packing in vectors. Included once per SIMD target.
//
// Note [Packing by lanes]
// A group of 512 elements is packed as sixteen streams, element 16k + lane into stream `lane`
// (quantize_ref.h). A vector of N lanes handles N streams at a time: it rounds 32 vectors of
// elements that lie 16 apart, and builds the words of its streams with shifts alone. No code moves
// from one lane to another, every width from 1 to 8 bits costs the same, and the bytes do not
// depend on N.

#if defined(THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_ENCODE_INL_H_
#undef THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_ENCODE_INL_H_
#else
#define THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_ENCODE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <utility>

#include "thinwire/compressors/kernels/elementwise.h"
#include "thinwire/compressors/kernels/philox-inl.h"
#include "thinwire/compressors/kernels/quantize_ref.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using LanesF = hn::CappedTag<float, kGroupLanes>;
using LanesI = hn::RebindToSigned<LanesF>;
using LanesU = hn::RebindToUnsigned<LanesF>;

// Adds `count` elements to the statistics, of which those before were a multiple of 16.
// `squares` is needed for the norm l2 alone.
HWY_INLINE void AddStatistics(const float* x, std::size_t count, bool squares,
                              ref::BucketStatistics& statistics) {
  const LanesF df;
  const LanesI di;
  const std::size_t lanes = hn::Lanes(df);
  const auto load = [&](std::size_t i) HWY_ATTR { return hn::LoadU(df, x + i); };
  const auto absolute = hn::Set(di, 0x7FFFFFFF);
  // The largest magnitude as an integer tells NaN and infinity from everything else; a minimum of
  // floats may lose a NaN.
  auto lo0 = hn::Set(df, statistics.lo), lo1 = lo0;
  auto hi0 = hn::Set(df, statistics.hi), hi1 = hi0;
  auto magnitude0 = hn::Zero(di), magnitude1 = magnitude0;
  std::size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    const auto a = load(i);
    const auto b = load(i + lanes);
    lo0 = hn::Min(lo0, a);
    lo1 = hn::Min(lo1, b);
    hi0 = hn::Max(hi0, a);
    hi1 = hn::Max(hi1, b);
    magnitude0 = hn::Max(magnitude0, hn::And(hn::BitCast(di, a), absolute));
    magnitude1 = hn::Max(magnitude1, hn::And(hn::BitCast(di, b), absolute));
  }
  statistics.lo = hn::GetLane(hn::MinOfLanes(df, hn::Min(lo0, lo1)));
  statistics.hi = hn::GetLane(hn::MaxOfLanes(df, hn::Max(hi0, hi1)));
  const auto magnitude = hn::MaxOfLanes(di, hn::Max(magnitude0, magnitude1));
  statistics.finite =
      statistics.finite && hn::GetLane(magnitude) < static_cast<std::int32_t>(kFloatInfinityBits);
  for (; i < count; ++i) {
    const float value = ref::load(DType::kFloat32, x, i);
    statistics.finite = statistics.finite && is_finite(value);
    statistics.lo = std::min(statistics.lo, value);
    statistics.hi = std::max(statistics.hi, value);
  }
  if (!squares) return;

  std::size_t squared = 0;
#if HWY_HAVE_FLOAT64
  // Products of floats are exact in doubles. Two accumulators cover 2 · wide of the 16 lanes.
  const hn::CappedTag<double, 8> dd;
  const hn::Rebind<float, decltype(dd)> dhalf;
  const std::size_t wide = hn::Lanes(dd);
  squared = count / kGroupLanes * kGroupLanes;
  for (std::size_t lane = 0; lane < kGroupLanes; lane += 2 * wide) {
    double* sums = statistics.squares.data() + lane;
    auto sum0 = hn::LoadU(dd, sums);
    auto sum1 = hn::LoadU(dd, sums + wide);
    for (std::size_t j = lane; j < squared; j += kGroupLanes) {
      const auto a = hn::PromoteTo(dd, hn::LoadU(dhalf, x + j));
      const auto b = hn::PromoteTo(dd, hn::LoadU(dhalf, x + j + wide));
      sum0 = hn::Add(sum0, hn::Mul(a, a));
      sum1 = hn::Add(sum1, hn::Mul(b, b));
    }
    hn::StoreU(sum0, dd, sums);
    hn::StoreU(sum1, dd, sums + wide);
  }
#endif
  for (std::size_t j = squared; j < count; ++j) {
    const auto value = static_cast<double>(ref::load(DType::kFloat32, x, j));
    statistics.squares[j % kGroupLanes] += value * value;
  }
}

// Codes of a vector of elements; level_nearest() and level_stochastic() in lanes. `words` are the
// elements' random words.
template <bool kStochastic>
struct Rounding {
  Rounding(const Levels& levels, const EncodeGrid& grid)
      : base(hn::Set(LanesF(), grid.base)),
        inverse(hn::Set(LanesF(), grid.inverse)),
        lowest(hn::Set(LanesF(), static_cast<float>(levels.lowest))),
        highest(hn::Set(LanesF(), static_cast<float>(levels.highest))),
        zero_code(hn::Set(LanesI(), (kStochastic ? 0 : 0x4B400000) + levels.lowest)) {}

  HWY_INLINE hn::Vec<LanesU> Codes(hn::Vec<LanesF> x, const std::uint32_t* words) const {
    const LanesF df;
    const LanesI di;
    const LanesU du;
    auto t = hn::Mul(hn::Sub(x, base), inverse);
    if constexpr (kStochastic) {
      t = hn::Min(hn::Max(t, lowest), highest);
      const auto floor = hn::Floor(t);
      const auto word = hn::BitCast(di, hn::ShiftRight<8>(hn::LoadU(du, words)));
      const auto uniform = hn::Mul(hn::ConvertTo(df, word), hn::Set(df, 0x1p-24f));
      const auto up = hn::IfThenElseZero(hn::Lt(uniform, hn::Sub(t, floor)), hn::Set(df, 1.0f));
      return hn::BitCast(du, hn::Sub(hn::ConvertTo(di, hn::Add(floor, up)), zero_code));
    } else {
      const auto rounded = hn::BitCast(di, hn::Add(t, hn::Set(df, 12582912.0f)));
      return hn::BitCast(du, hn::Sub(rounded, zero_code));
    }
  }

  hn::Vec<LanesF> base, inverse, lowest, highest;
  hn::Vec<LanesI> zero_code;
};

// Rounds element kCode of each stream of one vector and appends its code to `word`, the word of the
// streams that is being filled.
template <int kBits, int kCode, bool kStochastic>
HWY_INLINE void PackCode(const Rounding<kStochastic>& rounding, const float* x,
                         const std::uint32_t* words, hn::Vec<LanesU>& word, std::uint32_t* out) {
  const LanesU du;
  constexpr int kAt = kCode * kBits;
  constexpr int kShift = kAt % 32;
  const auto code = rounding.Codes(hn::LoadU(LanesF(), x + kCode * kGroupLanes),
                                   words + (kStochastic ? kCode * kGroupLanes : 0));
  word = kShift == 0 ? code : hn::Or(word, hn::ShiftLeft<kShift>(code));
  if constexpr (kShift + kBits >= 32) hn::StoreU(word, du, out + kAt / 32 * kGroupLanes);
  if constexpr (kShift + kBits > 32) word = hn::ShiftRight<32 - kShift>(code);
}

template <int kBits, bool kStochastic, int... kCodes>
HWY_INLINE void PackStreams(const Rounding<kStochastic>& rounding, const float* x,
                            const std::uint32_t* words, std::uint32_t* out,
                            std::integer_sequence<int, kCodes...>) {
  auto word = hn::Zero(LanesU());
  (PackCode<kBits, kCodes>(rounding, x, words, word, out), ...);
}

template <int kBits, bool kStochastic>
void PackGroup(const Rounding<kStochastic>& rounding, const float* x, const std::uint32_t* words,
               std::byte* out) {
  for (std::size_t lane = 0; lane < kGroupLanes; lane += hn::Lanes(LanesU())) {
    PackStreams<kBits>(rounding, x + lane, words + (kStochastic ? lane : 0),
                       reinterpret_cast<std::uint32_t*>(out) + lane,
                       std::make_integer_sequence<int, 32>());
  }
}

// Eight codes, one in each byte of `codes`, as 8 · bits adjacent bits.
HWY_INLINE std::uint64_t JoinCodes(std::uint64_t codes, int bits) {
  codes = (codes & 0x00FF00FF00FF00FFu) | (codes >> 8 & 0x00FF00FF00FF00FFu) << bits;
  codes = (codes & 0x0000FFFF0000FFFFu) | (codes >> 16 & 0x0000FFFF0000FFFFu) << 2 * bits;
  return (codes & 0x00000000FFFFFFFFu) | (codes >> 32) << 4 * bits;
}

// Packs fewer than 512 elements as one stream of bits.
template <bool kStochastic>
void PackRest(const Rounding<kStochastic>& rounding, const float* x, std::size_t count,
              const std::uint32_t* words, int bits, std::byte* out) {
  const LanesF df;
  const hn::Rebind<std::uint8_t, LanesI> d8;
  const std::size_t lanes = hn::Lanes(df);
  alignas(64) std::uint8_t codes[kGroupElements + kGroupLanes];
  const auto round = [&](const float* from, std::size_t i) HWY_ATTR {
    const auto code = rounding.Codes(hn::LoadU(df, from), words + (kStochastic ? i : 0));
    hn::StoreU(hn::DemoteTo(d8, hn::BitCast(LanesI(), code)), d8, codes + i);
  };
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) round(x + i, i);
  if (i < count) {
    float last[kGroupLanes] = {};
    std::memcpy(last, x + i, (count - i) * sizeof(float));
    round(last, i);
  }
  std::memset(codes + count, 0, 8);
  const std::size_t total = (count * static_cast<std::size_t>(bits) + 7) / 8;
  std::size_t written = 0;
  for (i = 0; i < count; i += 8, written += static_cast<std::size_t>(bits)) {
    std::uint64_t eight;
    std::memcpy(&eight, codes + i, 8);
    eight = JoinCodes(eight, bits);
    std::memcpy(out + written, &eight, std::min(static_cast<std::size_t>(bits), total - written));
  }
}

using PackGroupFunction = void (*)(const Rounding<false>&, const float*, const std::uint32_t*,
                                   std::byte*);
using PackGroupRandomly = void (*)(const Rounding<true>&, const float*, const std::uint32_t*,
                                   std::byte*);
inline constexpr PackGroupFunction kPackNearest[] = {
    PackGroup<1, false>, PackGroup<2, false>, PackGroup<3, false>, PackGroup<4, false>,
    PackGroup<5, false>, PackGroup<6, false>, PackGroup<7, false>, PackGroup<8, false>};
inline constexpr PackGroupRandomly kPackStochastic[] = {
    PackGroup<1, true>, PackGroup<2, true>, PackGroup<3, true>, PackGroup<4, true>,
    PackGroup<5, true>, PackGroup<6, true>, PackGroup<7, true>, PackGroup<8, true>};

// The words of `blocks` (a multiple of eight) blocks of Philox from block `first` on.
HWY_INLINE void FillWords(const PhiloxStream& stream, std::uint64_t first, std::size_t blocks,
                          std::uint32_t* words) {
#if HWY_TARGET == HWY_SCALAR
  for (std::size_t i = 0; i < blocks; ++i) {
    const auto block = stream.block(first + i);
    std::copy(block.begin(), block.end(), words + 4 * i);
  }
#else
  PhiloxBlocks(stream, first, blocks, words);
#endif
}

// Encodes buckets of one configuration.
class BucketEncoder {
 public:
  BucketEncoder(const QuantizeConfig& config, const PhiloxStream& stream)
      : config_(config), stream_(stream), levels_(levels_of(config.norm, config.bits)) {}

  void Encode(DType dtype, const std::byte* input, std::size_t count, std::uint64_t first_word,
              std::byte* output) const {
    const Bounds bounds = ref::bounds_of(config_.norm, Statistics(dtype, input, count));
    if (!is_finite(bounds.hi)) {
      std::memset(output, 0, bucket_bytes(config_.norm, config_.bits, count));
      ref::write_header(config_.norm, bounds, output);
      return;
    }
    ref::write_header(config_.norm, bounds, output);
    output += header_bytes(config_.norm);
    const EncodeGrid grid = encode_grid(levels_, bounds);
    if (config_.stochastic) {
      Pack(Rounding<true>(levels_, grid), kPackStochastic, dtype, input, count, first_word,
           grid.scale, output);
    } else {
      Pack(Rounding<false>(levels_, grid), kPackNearest, dtype, input, count, first_word,
           grid.scale, output);
    }
  }

 private:
  ref::BucketStatistics Statistics(DType dtype, const std::byte* input, std::size_t count) const {
    ref::BucketStatistics statistics;
    const bool squares = config_.norm == Norm::kL2;
    if (dtype == DType::kFloat32) {
      AddStatistics(reinterpret_cast<const float*>(input), count, squares, statistics);
      return statistics;
    }
    float block[kGroupElements];
    for (std::size_t i = 0; i < count; i += kGroupElements) {
      const std::size_t elements = std::min(kGroupElements, count - i);
      load_floats(dtype, input, i, elements, block);
      AddStatistics(block, elements, squares, statistics);
    }
    return statistics;
  }

  template <bool kStochastic, typename PackFunction>
  void Pack(const Rounding<kStochastic>& rounding, const PackFunction (&pack)[8], DType dtype,
            const std::byte* input, std::size_t count, std::uint64_t first_word, float scale,
            std::byte* output) const {
    float block[kGroupElements];
    // The first word may lie anywhere in a block of Philox, and blocks come eight at a time.
    std::uint32_t words[kStochastic ? kGroupElements + 64 : 1];
    const std::uint32_t* word = words;
    for (std::size_t i = 0; i < count; i += kGroupElements) {
      const std::size_t elements = std::min(kGroupElements, count - i);
      const auto* x = reinterpret_cast<const float*>(input) + i;
      if (dtype != DType::kFloat32 || scale != 1.0f) {
        load_floats(dtype, input, i, elements, block);
        x = block;
      }
      if (scale != 1.0f) {
        for (std::size_t j = 0; j < elements; ++j) block[j] *= scale;
      }
      if constexpr (kStochastic) {
        const std::uint64_t at = first_word + i;
        const std::size_t blocks = (elements + at % 4 + 3) / 4;
        FillWords(stream_, at / 4, (blocks + 7) / 8 * 8, words);
        word = words + at % 4;
      }
      if (elements == kGroupElements) {
        pack[config_.bits - 1](rounding, x, word, output);
        output += kGroupElements / 8 * static_cast<std::size_t>(config_.bits);
      } else {
        PackRest(rounding, x, elements, word, config_.bits, output);
      }
    }
  }

  const QuantizeConfig& config_;
  const PhiloxStream& stream_;
  Levels levels_;
};

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
