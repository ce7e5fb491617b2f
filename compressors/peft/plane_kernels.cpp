// Counting over bit planes, compiled once for every SIMD target.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

#include "thinwire/compressors/peft/ternary_planes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/peft/plane_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::peft::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Words = std::span<const std::uint64_t>;

// Bytewise counts grow by at most 8 a step, so 31 steps fit into a byte before they are summed.
constexpr std::size_t kSteps = 31;

#if HWY_TARGET == HWY_SCALAR

std::int64_t PopcountWords(Words words) {
  std::int64_t sum = 0;
  for (const std::uint64_t word : words) sum += std::popcount(word);
  return sum;
}

std::int64_t DotWords(Words a_mask, Words a_sign, Words b_mask, Words b_sign) {
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < a_mask.size(); ++i) {
    const std::uint64_t m = a_mask[i] & b_mask[i];
    sum += std::popcount(m) - 2 * std::popcount(m & (a_sign[i] ^ b_sign[i]));
  }
  return sum;
}

#else

std::int64_t PopcountWords(Words words) {
  const hn::ScalableTag<std::uint64_t> d64;
  const hn::Repartition<std::uint8_t, decltype(d64)> d8;
  const std::size_t lanes = hn::Lanes(d64);
  auto total = hn::Zero(d64);
  std::size_t i = 0;
  while (i + lanes <= words.size()) {
    const std::size_t end = i + lanes * std::min(kSteps, (words.size() - i) / lanes);
    auto counts = hn::Zero(d8);
    for (; i < end; i += lanes) {
      const auto bits = hn::BitCast(d8, hn::LoadU(d64, words.data() + i));
      counts = hn::Add(counts, hn::PopulationCount(bits));
    }
    total = hn::Add(total, hn::SumsOf8(counts));
  }
  auto sum = static_cast<std::int64_t>(hn::GetLane(hn::SumOfLanes(d64, total)));
  for (; i < words.size(); ++i) sum += std::popcount(words[i]);
  return sum;
}

// Both non-zero: m = a_mask & b_mask; different signs: x = m & (a_sign ^ b_sign). The product is
// +1 on m without x and -1 on x, so the sum is |m| - 2 |x|.
std::int64_t DotWords(Words a_mask, Words a_sign, Words b_mask, Words b_sign) {
  const hn::ScalableTag<std::uint64_t> d64;
  const hn::Repartition<std::uint8_t, decltype(d64)> d8;
  const std::size_t lanes = hn::Lanes(d64);
  const std::size_t n = a_mask.size();
  auto both_total = hn::Zero(d64);
  auto differ_total = hn::Zero(d64);
  std::size_t i = 0;
  while (i + lanes <= n) {
    const std::size_t end = i + lanes * std::min(kSteps, (n - i) / lanes);
    auto both = hn::Zero(d8);
    auto differ = hn::Zero(d8);
    for (; i < end; i += lanes) {
      const auto m = hn::And(hn::LoadU(d64, a_mask.data() + i), hn::LoadU(d64, b_mask.data() + i));
      const auto s = hn::Xor(hn::LoadU(d64, a_sign.data() + i), hn::LoadU(d64, b_sign.data() + i));
      both = hn::Add(both, hn::PopulationCount(hn::BitCast(d8, m)));
      differ = hn::Add(differ, hn::PopulationCount(hn::BitCast(d8, hn::And(m, s))));
    }
    both_total = hn::Add(both_total, hn::SumsOf8(both));
    differ_total = hn::Add(differ_total, hn::SumsOf8(differ));
  }
  auto sum = static_cast<std::int64_t>(hn::GetLane(hn::SumOfLanes(d64, both_total))) -
             2 * static_cast<std::int64_t>(hn::GetLane(hn::SumOfLanes(d64, differ_total)));
  for (; i < n; ++i) {
    const std::uint64_t m = a_mask[i] & b_mask[i];
    sum += std::popcount(m) - 2 * std::popcount(m & (a_sign[i] ^ b_sign[i]));
  }
  return sum;
}

#endif

}  // namespace thinwire::peft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::peft::detail {

HWY_EXPORT(PopcountWords);
HWY_EXPORT(DotWords);

std::int64_t popcount_words(std::span<const std::uint64_t> words) {
  return THINWIRE_DISPATCH(PopcountWords)(words);
}

std::int64_t dot_words(std::span<const std::uint64_t> a_mask, std::span<const std::uint64_t> a_sign,
                       std::span<const std::uint64_t> b_mask,
                       std::span<const std::uint64_t> b_sign) {
  return THINWIRE_DISPATCH(DotWords)(a_mask, a_sign, b_mask, b_sign);
}

std::int64_t dot_words_reference(std::span<const std::uint64_t> a_mask,
                                 std::span<const std::uint64_t> a_sign,
                                 std::span<const std::uint64_t> b_mask,
                                 std::span<const std::uint64_t> b_sign) {
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < a_mask.size(); ++i)
    for (unsigned bit = 0; bit < 64; ++bit) {
      const int a = static_cast<int>(a_mask[i] >> bit & 1) * (a_sign[i] >> bit & 1 ? -1 : 1);
      const int b = static_cast<int>(b_mask[i] >> bit & 1) * (b_sign[i] >> bit & 1 ? -1 : 1);
      sum += a * b;
    }
  return sum;
}

}  // namespace thinwire::peft::detail
#endif
