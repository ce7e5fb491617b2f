// Unpacking and decoding in vectors; see Note [Packing by lanes]. Included once per SIMD target.

#if defined(THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_DECODE_INL_H_
#undef THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_DECODE_INL_H_
#else
#define THINWIRE_COMPRESSORS_KERNELS_QUANTIZE_DECODE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <utility>

#include "thinwire/compressors/kernels/elementwise.h"
#include "thinwire/compressors/kernels/quantize_ref.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// value_of() in lanes, without `post`. Where levels are centred there is no base: −0 is what an
// addition leaves alone.
struct Grid {
  using DF = hn::CappedTag<float, kGroupLanes>;
  using DI = hn::RebindToSigned<DF>;
  using DU = hn::RebindToUnsigned<DF>;

  Grid(const Levels& levels, const DecodeGrid& grid)
      : lowest(hn::Set(DF(), static_cast<float>(levels.lowest))),
        step(hn::Set(DF(), levels.step)),
        span(hn::Set(DF(), grid.span)),
        base(hn::Set(DF(), levels.centred ? -0.0f : grid.base)) {}

  HWY_INLINE hn::Vec<DF> Values(hn::Vec<DU> codes) const {
    const auto level = hn::Add(hn::ConvertTo(DF(), hn::BitCast(DI(), codes)), lowest);
    return hn::Add(base, hn::Mul(hn::Mul(level, step), span));
  }

  hn::Vec<DF> lowest, step, span, base;
};

// What becomes of decoded values; kSubtract is for float32 alone.
enum class PutMode { kAssign, kAdd, kSubtract };

template <PutMode kMode>
HWY_INLINE void Put(hn::Vec<Grid::DF> value, float* out) {
  const Grid::DF df;
  if constexpr (kMode == PutMode::kAdd) value = hn::Add(hn::LoadU(df, out), value);
  if constexpr (kMode == PutMode::kSubtract) value = hn::Sub(hn::LoadU(df, out), value);
  hn::StoreU(value, df, out);
}

// Decodes element kCode of each stream of one vector; `word` is the last word read.
template <int kBits, int kCode, PutMode kMode>
HWY_INLINE void UnpackCode(const Grid& grid, const std::uint32_t* in, hn::Vec<Grid::DU>& word,
                           float* out) {
  const Grid::DU du;
  constexpr int kAt = kCode * kBits;
  constexpr int kShift = kAt % 32;
  if constexpr (kShift == 0) word = hn::LoadU(du, in + kAt / 32 * kGroupLanes);
  auto code = kShift == 0 ? word : hn::ShiftRight<kShift>(word);
  if constexpr (kShift + kBits > 32) {
    word = hn::LoadU(du, in + (kAt / 32 + 1) * kGroupLanes);
    code = hn::Or(code, hn::ShiftLeft<32 - kShift>(word));
  }
  if constexpr (kShift + kBits != 32) code = hn::And(code, hn::Set(du, (1u << kBits) - 1));
  Put<kMode>(grid.Values(code), out + kCode * kGroupLanes);
}

template <int kBits, PutMode kMode, int... kCodes>
HWY_INLINE void UnpackStreams(const Grid& grid, const std::uint32_t* in, float* out,
                              std::integer_sequence<int, kCodes...>) {
  auto word = hn::Zero(Grid::DU());
  (UnpackCode<kBits, kCodes, kMode>(grid, in, word, out), ...);
}

template <int kBits, PutMode kMode>
void UnpackGroup(const Grid& grid, const std::byte* in, float* out) {
  for (std::size_t lane = 0; lane < kGroupLanes; lane += hn::Lanes(Grid::DU())) {
    UnpackStreams<kBits, kMode>(grid, reinterpret_cast<const std::uint32_t*>(in) + lane, out + lane,
                                std::make_integer_sequence<int, 32>());
  }
}

// Vectors of 64-bit words with 8 · bits adjacent bits: eight codes each, one a byte.
using CodeWords = hn::CappedTag<std::uint64_t, kGroupLanes / 2>;
HWY_INLINE hn::Vec<CodeWords> SplitCodes(hn::Vec<CodeWords> codes, int bits) {
  const CodeWords d;
  const auto split = [&](auto v, std::uint64_t mask, int right, int left) HWY_ATTR {
    const auto high = hn::And(hn::ShiftRightSame(v, right), hn::Set(d, mask));
    return hn::Or(hn::And(v, hn::Set(d, mask)), hn::ShiftLeftSame(high, left));
  };
  const auto ones = [](int n) { return (std::uint64_t{1} << n) - 1; };
  codes = split(codes, ones(4 * bits), 4 * bits, 32);
  codes = split(codes, ones(2 * bits) * 0x0000000100000001u, 2 * bits, 16);
  return split(codes, ones(bits) * 0x0001000100010001u, bits, 8);
}

template <PutMode kMode>
void UnpackRest(const Grid& grid, const std::byte* in, std::size_t count, int bits, float* out) {
  const Grid::DF df;
  const hn::Rebind<std::uint8_t, Grid::DU> d8;
  const std::size_t lanes = hn::Lanes(df);
  const CodeWords d64;
  alignas(64) std::uint64_t words[kGroupElements / 8 + kGroupLanes];
  const auto step = static_cast<std::size_t>(bits);
  const std::size_t total = code_bytes(bits, count);
  std::size_t eights = 0, read = 0;
  for (; read + 8 <= total; ++eights, read += step) std::memcpy(words + eights, in + read, 8);
  for (; read < total; ++eights, read += step) {
    words[eights] = 0;
    std::memcpy(words + eights, in + read, std::min(step, total - read));
  }
  std::memset(words + eights, 0, 64);
  for (std::size_t j = 0; j < eights; j += hn::Lanes(d64)) {
    hn::StoreU(SplitCodes(hn::LoadU(d64, words + j), bits), d64, words + j);
  }
  const auto* codes = reinterpret_cast<const std::uint8_t*>(words);
  const auto values = [&](std::size_t i) HWY_ATTR {
    return grid.Values(hn::PromoteTo(Grid::DU(), hn::LoadU(d8, codes + i)));
  };
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) Put<kMode>(values(i), out + i);
  if (i < count) {
    float last[kGroupLanes] = {};
    std::memcpy(last, out + i, (count - i) * sizeof(float));
    Put<kMode>(values(i), last);
    std::memcpy(out + i, last, (count - i) * sizeof(float));
  }
}

using UnpackFunction = void (*)(const Grid&, const std::byte*, float*);

template <PutMode kMode>
inline constexpr UnpackFunction kUnpack[] = {
    UnpackGroup<1, kMode>, UnpackGroup<2, kMode>, UnpackGroup<3, kMode>, UnpackGroup<4, kMode>,
    UnpackGroup<5, kMode>, UnpackGroup<6, kMode>, UnpackGroup<7, kMode>, UnpackGroup<8, kMode>};

// Decodes buckets of one configuration.
template <PutMode kMode>
class BucketDecoder {
 public:
  explicit BucketDecoder(const QuantizeConfig& config)
      : config_(config), levels_(levels_of(config.norm, config.bits)) {}

  void Decode(const std::byte* input, DType dtype, std::byte* output, std::size_t count) const {
    const Bounds bounds = read_header(config_.norm, input);
    if (!is_finite(bounds.hi)) return Poison(dtype, output, count);
    input += header_bytes(config_.norm);
    const DecodeGrid values = decode_grid(levels_, bounds);
    const Grid grid(levels_, values);
    const bool direct = dtype == DType::kFloat32 && values.post == 1.0f;
    if (!direct) return UnpackThroughBlocks(grid, values.post, input, dtype, output, count);
    UnpackFloats<kMode>(grid, input, reinterpret_cast<float*>(output), count);
  }

 private:
  template <PutMode kPut>
  void UnpackFloats(const Grid& grid, const std::byte* input, float* out, std::size_t count) const {
    const auto unpack = kUnpack<kPut>[config_.bits - 1];
    for (; count >= kGroupElements; count -= kGroupElements) {
      unpack(grid, input, out);
      input += GroupBytes();
      out += kGroupElements;
    }
    if (count > 0) UnpackRest<kPut>(grid, input, count, config_.bits, out);
  }

  // Other dtypes, and buckets whose values do not fit float32's range before `post`.
  void UnpackThroughBlocks(const Grid& grid, float post, const std::byte* input, DType dtype,
                           std::byte* output, std::size_t count) const {
    float block[kGroupElements];
    for (std::size_t i = 0; i < count; i += kGroupElements) {
      const std::size_t elements = std::min(kGroupElements, count - i);
      UnpackFloats<PutMode::kAssign>(grid, input, block, elements);
      for (std::size_t j = 0; j < elements; ++j) {
        block[j] = limited_to(dtype, block[j] * post);
        // Adding what is negated rounds as subtracting does.
        if constexpr (kMode == PutMode::kSubtract) block[j] = -block[j];
      }
      Store(dtype, output, i, elements, block);
      input += GroupBytes();
    }
  }

  void Poison(DType dtype, std::byte* output, std::size_t count) const {
    float block[kGroupElements];
    std::fill_n(block, kGroupElements, float_of(kFloatNanBits));
    for (std::size_t i = 0; i < count; i += kGroupElements) {
      Store(dtype, output, i, std::min(kGroupElements, count - i), block);
    }
  }

  static void Store(DType dtype, std::byte* output, std::size_t first, std::size_t count,
                    const float* block) {
    store_floats(dtype, output, first, count, block,
                 kMode == PutMode::kAssign ? WriteMode::kAssign : WriteMode::kAccumulate);
  }

  std::size_t GroupBytes() const {
    return kGroupElements / 8 * static_cast<std::size_t>(config_.bits);
  }

  const QuantizeConfig& config_;
  Levels levels_;
};

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
