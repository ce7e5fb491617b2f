// Quantising and packing in vectors. Included once per SIMD target.
//
// Note [Packing by lanes]
// A group of 512 elements is packed as sixteen streams, element 16k + lane into stream `lane`
// (quantize_layout.h). A vector of N lanes handles N streams at a time: it rounds 32 vectors of
// elements that lie 16 apart, and builds the words of its streams with shifts alone. No code moves
// from one lane to another, every width from 1 to 8 bits costs the same, and the bytes do not
// depend on N.

#if defined(THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_ENCODE_INL_H_
#undef THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_ENCODE_INL_H_
#else
#define THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_ENCODE_INL_H_
#endif

#include <hwy/cache_control.h>
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

// Note [Reading ahead]
// The hardware prefetcher stops at every page, and a bucket of 1024 floats is a page: left alone,
// memory would idle at the start of every bucket. The sweep for the bounds therefore asks for every
// line one page ahead. Packing, which follows a bucket later, asks for nothing: lines that come
// farther ahead leave the first-level cache again. Asking for lines past the end does no harm.
HWY_INLINE void ReadAhead(const float* x) {
  constexpr std::uintptr_t kPage = 4096;
  hwy::Prefetch(reinterpret_cast<const float*>(reinterpret_cast<std::uintptr_t>(x) + kPage));
}

// Extremes of vectors of elements, and 0 · x summed: zero unless one was NaN or infinite. (A
// minimum of floats may lose a NaN.)
struct Extremes {
  HWY_INLINE void Add(hn::Vec<LanesF> x) {
    lo = hn::Min(lo, x);
    hi = hn::Max(hi, x);
    nan = hn::MulAdd(x, hn::Zero(LanesF()), nan);
  }
  HWY_INLINE void Add(const Extremes& other) {
    lo = hn::Min(lo, other.lo);
    hi = hn::Max(hi, other.hi);
    nan = hn::Add(nan, other.nan);
  }

  hn::Vec<LanesF> lo, hi, nan;
};

// Adds `count` elements to the statistics, of which those before were a multiple of 16.
// `squares` is needed for the norm l2 alone.
HWY_INLINE void AddStatistics(const float* x, std::size_t count, bool squares,
                              BucketStatistics& statistics) {
  const LanesF df;
  const std::size_t lanes = hn::Lanes(df);
  // Four accumulators hide the latency of a minimum.
  Extremes e0{hn::Set(df, statistics.lo), hn::Set(df, statistics.hi), hn::Zero(df)};
  Extremes e1 = e0, e2 = e0, e3 = e0;
  std::size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    for (std::size_t line = 0; line < 4 * lanes; line += kGroupLanes) ReadAhead(x + i + line);
    e0.Add(hn::LoadU(df, x + i));
    e1.Add(hn::LoadU(df, x + i + lanes));
    e2.Add(hn::LoadU(df, x + i + 2 * lanes));
    e3.Add(hn::LoadU(df, x + i + 3 * lanes));
  }
  for (; i + lanes <= count; i += lanes) e0.Add(hn::LoadU(df, x + i));
  e0.Add(e1);
  e2.Add(e3);
  e0.Add(e2);
  statistics.lo = hn::GetLane(hn::MinOfLanes(df, e0.lo));
  statistics.hi = hn::GetLane(hn::MaxOfLanes(df, e0.hi));
  statistics.finite = statistics.finite && hn::AllTrue(df, hn::Eq(e0.nan, hn::Zero(df)));
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
    double* sums = statistics.squares + lane;
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

// level_nearest() in lanes. What a lane gets is its code plus kOffset, the bits of 1.5 · 2^23.
struct Rounding {
  static constexpr std::uint32_t kOffset = 0x4B400000;

  Rounding(float base_of, float inverse_of, int lowest_of)
      : base(hn::Set(LanesF(), base_of)),
        inverse(hn::Set(LanesF(), inverse_of)),
        lowest(static_cast<std::uint32_t>(lowest_of)) {}

  HWY_INLINE hn::Vec<LanesU> OffsetCodes(hn::Vec<LanesF> x) const {
    const auto t = hn::Mul(hn::Sub(x, base), inverse);
    return hn::BitCast(LanesU(), hn::Add(t, hn::Set(LanesF(), 12582912.0f)));
  }
  HWY_INLINE hn::Vec<LanesU> Codes(hn::Vec<LanesF> x) const {
    return hn::Sub(OffsetCodes(x), hn::Set(LanesU(), kOffset + lowest));
  }

  hn::Vec<LanesF> base, inverse;
  std::uint32_t lowest;
};

// What the offsets of the codes that lie wholly in the word of code `first` add up to, in units of
// the offset: Σ 2^shift, modulo 2^32. A code that reaches into the next word comes without offset.
constexpr std::uint32_t offsets_in_word(int bits, int first) {
  std::uint32_t sum = 0;
  for (int code = first; code < 32 && code * bits / 32 == first * bits / 32; ++code) {
    if (code * bits % 32 + bits <= 32) sum += 1u << (code * bits % 32);
  }
  return sum;
}

// Rounds element kCode of each stream of one vector and appends its code to `word`, the word of the
// streams that is being filled. Codes are added with their offsets, which are taken off the word
// as a whole: one operation less an element.
template <int kBits, int kCode>
HWY_INLINE void PackCode(const Rounding& rounding, const float* x, hn::Vec<LanesU>& word,
                         std::uint32_t* out) {
  const LanesU du;
  constexpr int kAt = kCode * kBits;
  constexpr int kShift = kAt % 32;
  constexpr bool kSplit = kShift + kBits > 32;
  constexpr bool kFirst = kShift < kBits;  // the first that starts in its word
  const auto input = hn::LoadU(LanesF(), x + kCode * kGroupLanes);
  const auto code = kSplit ? rounding.Codes(input) : rounding.OffsetCodes(input);
  if constexpr (kFirst) {
    const std::uint32_t offset = Rounding::kOffset + rounding.lowest;
    word = hn::Sub(word, hn::Set(du, offset * offsets_in_word(kBits, kCode)));
  }
  word = hn::Add(word, kShift == 0 ? code : hn::ShiftLeft<kShift>(code));
  if constexpr (kShift + kBits >= 32) {
    hn::StoreU(word, du, out + kAt / 32 * kGroupLanes);
    word = kSplit ? hn::ShiftRight<(kSplit ? 32 - kShift : 0)>(code) : hn::Zero(du);
  }
}

template <int kBits, int... kCodes>
HWY_INLINE void PackStreams(const Rounding& rounding, const float* x, std::uint32_t* out,
                            std::integer_sequence<int, kCodes...>) {
  auto word = hn::Zero(LanesU());
  (PackCode<kBits, kCodes>(rounding, x, word, out), ...);
}

template <int kBits>
void PackGroup(const Rounding& rounding, const float* x, std::byte* out) {
  for (std::size_t lane = 0; lane < kGroupLanes; lane += hn::Lanes(LanesU())) {
    PackStreams<kBits>(rounding, x + lane, reinterpret_cast<std::uint32_t*>(out) + lane,
                       std::make_integer_sequence<int, 32>());
  }
}

inline constexpr void (*kPackGroup[])(const Rounding&, const float*, std::byte*) = {
    PackGroup<1>, PackGroup<2>, PackGroup<3>, PackGroup<4>,
    PackGroup<5>, PackGroup<6>, PackGroup<7>, PackGroup<8>};

// A vector of 64-bit words with eight codes each, one a byte: as 8 · bits adjacent bits.
using Words = hn::CappedTag<std::uint64_t, kGroupLanes / 2>;
HWY_INLINE hn::Vec<Words> JoinCodes(hn::Vec<Words> codes, int bits) {
  const Words d;
  const auto join = [&](auto v, std::uint64_t even, int right, int left) HWY_ATTR {
    const auto odd = hn::And(hn::ShiftRightSame(v, right), hn::Set(d, even));
    return hn::Or(hn::And(v, hn::Set(d, even)), hn::ShiftLeftSame(odd, left));
  };
  codes = join(codes, 0x00FF00FF00FF00FFu, 8, bits);
  codes = join(codes, 0x0000FFFF0000FFFFu, 16, 2 * bits);
  return join(codes, 0x00000000FFFFFFFFu, 32, 4 * bits);
}

// Packs fewer than 512 elements as one stream of bits.
HWY_INLINE void PackRest(const Rounding& rounding, const float* x, std::size_t count, int bits,
                         std::byte* out) {
  const LanesF df;
  const hn::Rebind<std::uint8_t, LanesI> d8;
  const std::size_t lanes = hn::Lanes(df);
  // Eight codes a word; room for a whole vector at the end.
  alignas(64) std::uint64_t words[kGroupElements / 8 + kGroupLanes];
  auto* codes = reinterpret_cast<std::uint8_t*>(words);
  const auto round = [&](const float* from, std::size_t i) HWY_ATTR {
    const auto code = hn::BitCast(LanesI(), rounding.Codes(hn::LoadU(df, from)));
    hn::StoreU(hn::DemoteTo(d8, code), d8, codes + i);
  };
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) round(x + i, i);
  if (i < count) {
    float last[kGroupLanes] = {};
    std::memcpy(last, x + i, (count - i) * sizeof(float));
    round(last, i);
  }
  std::memset(codes + count, 0, 8);
  const Words d64;
  for (i = 0; i < count; i += 8 * hn::Lanes(d64)) {
    hn::StoreU(JoinCodes(hn::LoadU(d64, words + i / 8), bits), d64, words + i / 8);
  }
  // Eight codes are `bits` bytes. All eight bytes are written where there is room: what is beyond
  // them is overwritten by the next.
  const auto step = static_cast<std::size_t>(bits);
  const std::size_t total = (count * step + 7) / 8;
  std::size_t written = 0;
  for (i = 0; written + 8 <= total; ++i, written += step) std::memcpy(out + written, words + i, 8);
  for (; written < total; ++i, written += step) {
    std::memcpy(out + written, words + i, std::min(step, total - written));
  }
}

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

  struct Plan {
    Bounds bounds;
    EncodeGrid grid;
  };

  Plan Analyse(DType dtype, const std::byte* input, std::size_t count) const {
    const Bounds bounds = bounds_of(config_.norm, Statistics(dtype, input, count));
    return {bounds, encode_grid(levels_, bounds)};
  }

  // `plan` is what Analyse() returned for the bucket.
  void Encode(const Plan& plan, DType dtype, const std::byte* input, std::size_t count,
              std::uint64_t first_word, std::byte* output) const {
    write_header(config_.norm, plan.bounds, output);
    output += header_bytes(config_.norm);
    if (is_finite(plan.bounds.hi)) {
      Pack(plan.grid, dtype, input, count, first_word, output);
    } else {
      std::memset(output, 0, code_bytes(config_.bits, count));
    }
  }

 private:
  BucketStatistics Statistics(DType dtype, const std::byte* input, std::size_t count) const {
    BucketStatistics statistics;
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

  void Pack(const EncodeGrid& grid, DType dtype, const std::byte* input, std::size_t count,
            std::uint64_t first_word, std::byte* output) const {
    // Stochastic rounding leaves whole levels in `block`, which rounding to nearest only packs.
    const Rounding rounding = config_.stochastic
                                  ? Rounding(0.0f, 1.0f, levels_.lowest)
                                  : Rounding(grid.base, grid.inverse, levels_.lowest);
    float block[kGroupElements];
    for (std::size_t i = 0; i < count; i += kGroupElements) {
      const std::size_t elements = std::min(kGroupElements, count - i);
      const auto* x = reinterpret_cast<const float*>(input) + i;
      if (dtype != DType::kFloat32 || grid.scale != 1.0f) {
        load_floats(dtype, input, i, elements, block);
        x = block;
      }
      if (grid.scale != 1.0f) {
        for (std::size_t j = 0; j < elements; ++j) block[j] *= grid.scale;
      }
      if (config_.stochastic) {
        RoundRandomly(grid, x, elements, first_word + i, block);
        x = block;
      }
      if (elements == kGroupElements) {
        kPackGroup[config_.bits - 1](rounding, x, output);
        output += kGroupElements / 8 * static_cast<std::size_t>(config_.bits);
      } else {
        PackRest(rounding, x, elements, config_.bits, output);
      }
    }
  }

  // level_stochastic() of at most a group of elements, which are scaled already, as floats.
  void RoundRandomly(const EncodeGrid& grid, const float* x, std::size_t count,
                     std::uint64_t first_word, float* levels) const {
    // The first word may lie anywhere in a block of Philox, and blocks come eight at a time.
    std::uint32_t words[kGroupElements + 64];
    const std::size_t blocks = (count + first_word % 4 + 3) / 4;
    FillWords(stream_, first_word / 4, (blocks + 7) / 8 * 8, words);
    const std::uint32_t* word = words + first_word % 4;

    const LanesF df;
    const auto base = hn::Set(df, grid.base);
    const auto inverse = hn::Set(df, grid.inverse);
    const auto lowest = hn::Set(df, static_cast<float>(levels_.lowest));
    const auto highest = hn::Set(df, static_cast<float>(levels_.highest));
    const auto round = [&](const float* from, std::size_t i) HWY_ATTR {
      auto t = hn::Mul(hn::Sub(hn::LoadU(df, from), base), inverse);
      t = hn::Min(hn::Max(t, lowest), highest);
      const auto floor = hn::Floor(t);
      const auto high = hn::BitCast(LanesI(), hn::ShiftRight<8>(hn::LoadU(LanesU(), word + i)));
      const auto uniform = hn::Mul(hn::ConvertTo(df, high), hn::Set(df, 0x1p-24f));
      const auto up = hn::IfThenElseZero(hn::Lt(uniform, hn::Sub(t, floor)), hn::Set(df, 1.0f));
      return hn::Add(floor, up);
    };
    std::size_t i = 0;
    for (; i + hn::Lanes(df) <= count; i += hn::Lanes(df)) {
      hn::StoreU(round(x + i, i), df, levels + i);
    }
    if (i < count) {
      float last[kGroupLanes] = {};
      std::memcpy(last, x + i, (count - i) * sizeof(float));
      hn::StoreU(round(last, i), df, last);
      std::memcpy(levels + i, last, (count - i) * sizeof(float));
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
