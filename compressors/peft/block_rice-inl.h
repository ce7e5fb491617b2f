// Golomb-Rice codes of the gaps between set entries, compiled once for every SIMD target.
//
// A gap g (the number of zero entries before a set one) with parameter b is floor(g / 2^b) zero
// bits, a one, and the low b bits of g. Rice & Plaunt, "Adaptive variable-length coding for
// efficient compression of spacecraft television data", IEEE Trans. Comm. 1971.
#if defined(THINWIRE_PEFT_BLOCK_RICE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_PEFT_BLOCK_RICE_INL_H
#undef THINWIRE_PEFT_BLOCK_RICE_INL_H
#else
#define THINWIRE_PEFT_BLOCK_RICE_INL_H
#endif

#include <algorithm>
#include <array>
#include <cmath>

#include "thinwire/compressors/peft/block_bits-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::peft::HWY_NAMESPACE {

inline constexpr int kMaxRice = 18;  // a gap is below 2^18

// Calls visit(gap) for every set entry.
template <typename Visit>
HWY_INLINE void ForEachGap(std::span<const std::uint64_t> mask, Visit visit) {
  std::int64_t next = 0;  // first entry after the last set one
  for (std::size_t w = 0; w < mask.size(); ++w) {
    for (std::uint64_t bits = mask[w]; bits != 0; bits &= bits - 1) {
      const std::int64_t at = static_cast<std::int64_t>(64 * w) + std::countr_zero(bits);
      visit(static_cast<std::uint64_t>(at - next));
      next = at + 1;
    }
  }
}

// The best parameter for geometric gaps: 1 + floor(log2(log(golden ratio - 1) / log(1 - density))).
inline int RiceParameter(std::int64_t ones, std::int64_t entries) {
  if (ones >= entries) return 0;
  const double density = static_cast<double>(ones) / static_cast<double>(entries);
  const double b =
      1 + std::floor(std::log2(std::log((std::sqrt(5.0) - 1) / 2) / std::log1p(-density)));
  return std::clamp(static_cast<int>(b), 0, kMaxRice);
}

struct RiceChoice {
  int parameter = 0;
  std::int64_t bits = 0;
};

// The best parameter next to the geometric one and its size, estimated from every eighth stretch of
// 32 words: listing all gaps twice would be half the time of encoding. Where there are few gaps,
// from all.
inline RiceChoice EstimateRice(std::span<const std::uint64_t> mask, std::int64_t ones,
                               std::int64_t entries) {
  const bool sample = mask.size() > 1024 && ones > 4096;
  const std::size_t stretch = sample ? 32 : mask.size();
  const std::size_t step = sample ? 8 * stretch : stretch;
  const int centre = std::clamp(RiceParameter(ones, entries), 1, kMaxRice - 1);
  std::array<std::int64_t, 3> quotients{};
  std::int64_t seen = 0;
  for (std::size_t w = 0; w < mask.size(); w += step) {
    ForEachGap(mask.subspan(w, std::min(stretch, mask.size() - w)), [&](std::uint64_t gap) {
      for (int i = 0; i < 3; ++i)
        quotients[static_cast<std::size_t>(i)] +=
            static_cast<std::int64_t>(gap >> (centre - 1 + i));
      ++seen;
    });
  }
  RiceChoice best{0, INT64_MAX};
  for (int i = 0; i < 3; ++i) {
    const int b = centre - 1 + i;
    const double mean = seen > 0 ? static_cast<double>(quotients[static_cast<std::size_t>(i)]) /
                                       static_cast<double>(seen)
                                 : 0;
    const auto bits = static_cast<std::int64_t>(static_cast<double>(ones) * (b + 1 + mean));
    if (bits < best.bits) best = {b, bits};
  }
  return best;
}

// No fewer bits than the code takes, whatever the gaps: their sum is at most `entries`.
inline std::int64_t RiceBound(int parameter, std::int64_t ones, std::int64_t entries) {
  return ones * (parameter + 1) + (entries - ones) / (std::int64_t{1} << parameter);
}

// The exact size under the parameters next to the geometric one.
inline RiceChoice ChooseRice(std::span<const std::uint64_t> mask, std::int64_t ones,
                             std::int64_t entries) {
  const int centre = std::clamp(RiceParameter(ones, entries), 1, kMaxRice - 1);
  std::array<std::int64_t, 3> quotients{};
  ForEachGap(mask, [&](std::uint64_t gap) {
    quotients[0] += static_cast<std::int64_t>(gap >> (centre - 1));
    quotients[1] += static_cast<std::int64_t>(gap >> centre);
    quotients[2] += static_cast<std::int64_t>(gap >> (centre + 1));
  });
  RiceChoice best{0, INT64_MAX};
  for (int i = 0; i < 3; ++i) {
    const int b = centre - 1 + i;
    const std::int64_t bits = ones * (b + 1) + quotients[static_cast<std::size_t>(i)];
    if (bits < best.bits) best = {b, bits};
  }
  return best;
}

inline std::byte* EncodeRice(std::span<const std::uint64_t> mask, int parameter, std::byte* out) {
  BitWriter writer(out);
  const auto b = static_cast<unsigned>(parameter);
  const std::uint64_t low = (std::uint64_t{1} << b) - 1;
  ForEachGap(mask, [&](std::uint64_t gap) {
    std::uint64_t quotient = gap >> b;
    for (; quotient >= 32; quotient -= 32) writer.Put(0, 32);
    const auto q = static_cast<unsigned>(quotient);
    writer.Put((std::uint64_t{1} | (gap & low) << 1) << q, q + 1 + b);
  });
  return writer.Finish();
}

// Sets the `ones` entries that the codes name; `mask` is zero before. False where they run past
// the entries or the bytes, or leave some over.
inline bool DecodeRice(std::span<const std::byte> in, int parameter, std::int64_t ones,
                       std::int64_t entries, std::span<std::uint64_t> mask) {
  if (parameter > kMaxRice) return false;
  BitReader reader(in);
  const auto b = static_cast<unsigned>(parameter);
  const std::uint64_t low = (std::uint64_t{1} << b) - 1;
  const auto limit = static_cast<std::uint64_t>(entries);
  std::uint64_t at = 0;
  for (std::int64_t i = 0; i < ones; ++i) {
    std::uint64_t bits = reader.Peek();
    std::uint64_t quotient = 0;
    // Long runs of zeros, and codes that may pass the 57 bits at hand, go the slow way.
    if ((bits & 0xFFFFFFFFu) == 0) [[unlikely]] {
      while ((bits & 0xFFFFFFFFu) == 0) {
        reader.Skip(32);
        quotient += 32;
        if (reader.Position() >= reader.SizeInBits()) return false;
        bits = reader.Peek();
      }
    }
    const auto q = static_cast<unsigned>(std::countr_zero(bits));
    quotient += q;
    const std::uint64_t gap = quotient << b | (bits >> (q + 1) & low);
    reader.Skip(q + 1 + b);
    at += gap;
    if (at >= limit) return false;
    mask[at / 64] |= std::uint64_t{1} << (at % 64);
    ++at;
  }
  return reader.AtEnd();
}

}  // namespace thinwire::peft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
