#include "thinwire/compressors/kernels/topk.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/topk_ref.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/kernels/topk_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DI = hn::ScalableTag<std::int32_t>;

// Room behind the last element that a vector store may touch.
constexpr std::size_t kSlack = 64;

// Appends every element with key >= threshold, and its index, to the two arrays; stops early once
// more than `capacity` are found. The arrays hold capacity + kSlack elements. Returns the number
// found.
std::size_t CollectAtLeast(const float* x, std::size_t n, std::uint32_t threshold,
                           std::size_t capacity, std::uint32_t* indices, float* values) {
  const DI d;
  const hn::RebindToFloat<DI> df;
  const hn::RebindToUnsigned<DI> du;
  const std::size_t lanes = hn::Lanes(d);
  // Keys are below 2^31, so signed comparison orders them; key > threshold - 1 also serves 0.
  const auto below = hn::Set(d, static_cast<std::int32_t>(threshold) - 1);
  const auto magnitude = hn::Set(d, 0x7FFFFFFF);
  std::size_t count = 0, i = 0;
  const auto key = [&](const float* at)
                       HWY_ATTR { return hn::And(hn::BitCast(d, hn::LoadU(df, at)), magnitude); };
  const auto append = [&](std::size_t at, auto mask) HWY_ATTR {
    if (hn::AllFalse(d, mask)) return;
    hn::CompressStore(hn::LoadU(df, x + at), hn::RebindMask(df, mask), df, values + count);
    count += hn::CompressStore(hn::Iota(du, static_cast<std::uint32_t>(at)),
                               hn::RebindMask(du, mask), du, indices + count);
  };
  // At the usual densities most groups of four vectors hold nothing: one branch for all four.
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto m0 = hn::Gt(key(x + i), below);
    const auto m1 = hn::Gt(key(x + i + lanes), below);
    const auto m2 = hn::Gt(key(x + i + 2 * lanes), below);
    const auto m3 = hn::Gt(key(x + i + 3 * lanes), below);
    if (hn::AllFalse(d, hn::Or(hn::Or(m0, m1), hn::Or(m2, m3)))) continue;
    append(i, m0);
    if (count > capacity) return count;
    append(i + lanes, m1);
    if (count > capacity) return count;
    append(i + 2 * lanes, m2);
    if (count > capacity) return count;
    append(i + 3 * lanes, m3);
    if (count > capacity) return count;
  }
  for (; i < n && count <= capacity; ++i) {
    if (ref::magnitude_key(x[i]) < threshold) continue;
    values[count] = x[i];
    indices[count++] = static_cast<std::uint32_t>(i);
  }
  return count;
}

// Appends the elements with key > threshold and the first `ties` with key == threshold, in order.
// `names` holds the index of each element; null: its position.
void CollectExact(const float* x, const std::uint32_t* names, std::size_t n,
                  std::uint32_t threshold, std::size_t ties, std::uint32_t* indices,
                  float* values) {
  const DI d;
  const hn::RebindToFloat<DI> df;
  const hn::RebindToUnsigned<DI> du;
  const std::size_t lanes = hn::Lanes(d);
  const auto limit = hn::Set(d, static_cast<std::int32_t>(threshold));
  const auto magnitude = hn::Set(d, 0x7FFFFFFF);
  std::size_t count = 0, i = 0;
  const auto one = [&](std::size_t at) {
    const std::uint32_t key = ref::magnitude_key(x[at]);
    if (key < threshold || (key == threshold && ties == 0)) return;
    ties -= key == threshold;
    values[count] = x[at];
    indices[count++] = names ? names[at] : static_cast<std::uint32_t>(at);
  };
  for (; i + lanes <= n; i += lanes) {
    const auto v = hn::LoadU(df, x + i);
    const auto key = hn::And(hn::BitCast(d, v), magnitude);
    auto mask = hn::Gt(key, limit);
    const auto equal = hn::Eq(key, limit);
    if (ties != 0 && !hn::AllFalse(d, equal)) {
      const std::size_t found = hn::CountTrue(d, equal);
      if (found > ties) {  // the last tie lies within this vector
        for (std::size_t j = 0; j < lanes; ++j) one(i + j);
        continue;
      }
      ties -= found;
      mask = hn::Or(mask, equal);
    }
    if (hn::AllFalse(d, mask)) continue;
    const auto name =
        names ? hn::LoadU(du, names + i) : hn::Iota(du, static_cast<std::uint32_t>(i));
    hn::CompressStore(v, hn::RebindMask(df, mask), df, values + count);
    count += hn::CompressStore(name, hn::RebindMask(du, mask), du, indices + count);
  }
  for (; i < n; ++i) one(i);
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::kernels {
namespace {

HWY_EXPORT(CollectAtLeast);
HWY_EXPORT(CollectExact);

constexpr std::size_t kSlack = 64;

// Adds to `bins` the digit (key >> shift) & mask of every element whose higher bits are `prefix`.
template <std::size_t kBins>
void histogram(std::span<const float> x, int shift, std::uint32_t prefix,
               std::array<std::uint32_t, kBins>& bins) {
  constexpr int kBits = std::bit_width(kBins) - 1;
  // Four tables, so that a run of equal digits does not wait for its own last increment.
  std::array<std::array<std::uint32_t, kBins>, 4> part{};
  const auto count = [&](std::size_t i, std::size_t table) {
    const std::uint32_t digits = ref::magnitude_key(x[i]) >> shift;
    if (digits >> kBits == prefix) ++part[table][digits & (kBins - 1)];
  };
  std::size_t i = 0;
  for (; i + 4 <= x.size(); i += 4) {
    count(i, 0);
    count(i + 1, 1);
    count(i + 2, 2);
    count(i + 3, 3);
  }
  for (; i < x.size(); ++i) count(i, 0);
  for (std::size_t b = 0; b < kBins; ++b) {
    bins[b] = part[0][b] + part[1][b] + part[2][b] + part[3][b];
  }
}

// Narrows `result` by one digit: finds the bin that holds the element with `k` at or above it.
template <std::size_t kBins>
void refine(std::span<const float> x, std::size_t k, int shift, KthMagnitude& result) {
  std::array<std::uint32_t, kBins> bins;
  histogram(x, shift, result.key, bins);
  std::size_t bin = kBins - 1;
  while (result.above + bins[bin] < k) result.above += bins[bin--];
  result.key = result.key * static_cast<std::uint32_t>(kBins) + static_cast<std::uint32_t>(bin);
}

// With room for somewhat more, since the next tensor may have more.
template <typename Number>
void make_room(std::vector<Number>& numbers, std::size_t count) {
  if (count > numbers.capacity()) numbers.reserve(count + count / 8);
  numbers.resize(count);
}

void reserve(TopkSelection& s, std::size_t kept) {
  make_room(s.indices, kept + kSlack);
  make_room(s.values, kept + kSlack);
}

void shrink(TopkSelection& s, std::size_t kept) {
  s.indices.resize(kept);
  s.values.resize(kept);
}

void select_over(std::span<const float> x, const std::uint32_t* names, std::size_t k,
                 TopkSelection& s) {
  const KthMagnitude kth = kth_magnitude(x, k);
  reserve(s, k);
  THINWIRE_DISPATCH(CollectExact)
  (x.data(), names, x.size(), kth.key, k - kth.above, s.indices.data(), s.values.data());
  shrink(s, k);
}

// Groups of four neighbours at places that are spread evenly with a jitter: a fixed stride could
// keep step with the rows of a matrix.
void sample_spread(std::span<const float> x, std::vector<float>& sample) {
  constexpr std::size_t kGroup = 4, kGroups = kTopkSample / kGroup;
  const std::size_t stride = x.size() / kGroups;
  std::uint32_t state = 0x9E3779B9u;
  sample.resize(kTopkSample);
  for (std::size_t g = 0; g < kGroups; ++g) {
    state = state * 1664525u + 1013904223u;
    const std::size_t jitter = (std::uint64_t{state} * (stride - kGroup + 1)) >> 32;
    std::copy_n(x.data() + g * stride + jitter, kGroup, sample.data() + g * kGroup);
  }
}

}  // namespace

KthMagnitude kth_magnitude(std::span<const float> x, std::size_t k) {
  THINWIRE_ASSERT(k >= 1 && k <= x.size());
  KthMagnitude result{0, 0};
  refine<2048>(x, k, 20, result);
  refine<1024>(x, k, 10, result);
  refine<1024>(x, k, 0, result);
  return result;
}

void select_topk(std::span<const float> x, std::size_t k, TopkSelection& s) {
  THINWIRE_ASSERT(k >= 1 && k <= x.size() && x.size() <= 0xFFFFFFFFu);
  if (x.size() < 8 * kTopkSample) return select_over(x, nullptr, k, s);

  sample_spread(x, s.sample);
  // The sample's rank that fewer than k elements of the tensor reach with a chance of about 1e-6
  // (five standard deviations); a third more where neighbours resemble each other.
  const double expected =
      static_cast<double>(kTopkSample) * static_cast<double>(k) / static_cast<double>(x.size());
  const double rank = expected + 6.5 * std::sqrt(expected) + 8;
  if (rank > 0.9 * kTopkSample) return select_over(x, nullptr, k, s);
  const KthMagnitude guess = kth_magnitude(s.sample, static_cast<std::size_t>(rank));
  const double likely = rank / static_cast<double>(kTopkSample) * static_cast<double>(x.size());
  const auto capacity = std::min(x.size(), static_cast<std::size_t>(1.5 * likely));
  make_room(s.candidate_indices, capacity + kSlack);
  make_room(s.candidate_values, capacity + kSlack);
  const std::size_t found =
      THINWIRE_DISPATCH(CollectAtLeast)(x.data(), x.size(), guess.key, capacity,
                                        s.candidate_indices.data(), s.candidate_values.data());
  if (found < k || found > capacity) return select_over(x, nullptr, k, s);
  select_over({s.candidate_values.data(), found}, s.candidate_indices.data(), k, s);
}

void select_topk_sampled(std::span<const float> x, std::size_t k, const PhiloxStream& stream,
                         TopkSelection& s) {
  THINWIRE_ASSERT(k >= 1 && k <= x.size() && x.size() <= 0xFFFFFFFFu);
  if (x.size() <= kTopkSample) return select_topk(x, k, s);
  s.sample.resize(kTopkSample);
  for (std::size_t block = 0; block < kTopkSample / 4; ++block) {
    const auto words = stream.block(block);
    for (std::size_t j = 0; j < 4; ++j) {
      s.sample[4 * block + j] = x[(std::uint64_t{words[j]} * x.size()) >> 32];
    }
  }
  const double expected =
      static_cast<double>(kTopkSample) * static_cast<double>(k) / static_cast<double>(x.size());
  const auto rank =
      std::clamp<std::size_t>(static_cast<std::size_t>(expected + 0.5), 1, kTopkSample);
  const KthMagnitude threshold = kth_magnitude(s.sample, rank);
  const std::size_t most = std::min(x.size(), 2 * k);
  reserve(s, most);
  const std::size_t found = THINWIRE_DISPATCH(CollectAtLeast)(
      x.data(), x.size(), threshold.key, most, s.indices.data(), s.values.data());
  if (found < (k + 1) / 2 || found > most) return select_topk(x, k, s);
  shrink(s, found);
}

}  // namespace thinwire::kernels
#endif  // HWY_ONCE
