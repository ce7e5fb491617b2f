// onebit and terngrad (sign_planes.h) with one block of threads a bucket, see block.h. They share
// their arithmetic with the CPU (sign_planes_math.h) and add in the same order: each lane's sum by
// one thread, element after element.
#pragma once

#include "thinwire/common/philox.h"
#include "thinwire/compressors/kernels/block.h"
#include "thinwire/compressors/kernels/sign_planes.h"
#include "thinwire/compressors/kernels/sign_planes_math.h"

namespace thinwire::kernels {

struct SignShared {
  float lanes[2][kSumLanes];
  std::uint32_t negatives[kSumLanes];
  std::uint32_t largest[kMaxBlockThreads];  // bits of magnitudes
  TernScale scale;
};

// `bit_at(i)` of the eight elements from `first` on.
template <typename BitAt>
THINWIRE_HOST_DEVICE std::byte byte_of_plane(std::uint32_t first, std::uint32_t elements,
                                             const BitAt& bit_at) {
  std::uint32_t bits = 0;
  for (std::uint32_t b = 0; b < 8 && first + b < elements; ++b) {
    bits |= (bit_at(first + b) ? 1u : 0u) << b;
  }
  return static_cast<std::byte>(bits);
}

THINWIRE_HOST_DEVICE bool bit_of_plane(const std::byte* plane, std::uint32_t i) {
  return (static_cast<std::uint32_t>(plane[i / 8]) >> (i % 8) & 1u) != 0;
}

// As ref::onebit_encode().
template <typename Context>
THINWIRE_HOST_DEVICE void write_onebit(Context& block, SignShared& shared, const float* x,
                                       std::uint32_t elements, std::byte* payload) {
  constexpr auto kLanes = static_cast<std::uint32_t>(kSumLanes);
  for (std::uint32_t sum = block.thread(); sum < 2 * kLanes; sum += block.size()) {
    const bool negative = sum >= kLanes;
    float total = 0;
    std::uint32_t count = 0;
    for (std::uint32_t i = sum % kLanes; i < elements; i += kLanes) {
      if ((x[i] < 0) != negative) continue;
      total += x[i];
      ++count;
    }
    shared.lanes[negative ? 1 : 0][sum % kLanes] = total;
    if (negative) shared.negatives[sum - kLanes] = count;
  }
  const auto bytes = static_cast<std::uint32_t>(plane_bytes(elements));
  for (std::uint32_t b = block.thread(); b < bytes; b += block.size()) {
    payload[8 + b] = byte_of_plane(8 * b, elements, [&](std::uint32_t i) { return x[i] < 0; });
  }
  block.sync();
  if (block.thread() != 0) return;
  std::uint32_t negatives = 0;
  for (std::uint32_t lane = 0; lane < kLanes; ++lane) negatives += shared.negatives[lane];
  const float positive = folded(shared.lanes[0]), negative = folded(shared.lanes[1]);
  const SignMeans means = means_of(x, elements, {positive, negative, negatives});
  store_word(payload, bits_of(means.positive));
  store_word(payload + 4, bits_of(means.negative));
}

template <typename Context, typename Visit>
THINWIRE_HOST_DEVICE void read_onebit(const Context& block, const std::byte* payload,
                                      std::uint32_t elements, const Visit& visit) {
  const float positive = float_of(load_word(payload)), negative = float_of(load_word(payload + 4));
  for (std::uint32_t i = block.thread(); i < elements; i += block.size()) {
    visit(i, bit_of_plane(payload + 8, i) ? negative : positive);
  }
}

// Leaves the bits of the largest magnitude in shared.largest[0]; what is not finite is larger than
// all that is.
template <typename Context>
THINWIRE_HOST_DEVICE void find_largest(Context& block, SignShared& shared, const float* x,
                                       std::uint32_t elements) {
  const std::uint32_t thread = block.thread(), size = block.size();
  std::uint32_t mine = 0;
  for (std::uint32_t i = thread; i < elements; i += size) {
    const std::uint32_t magnitude = bits_of(x[i]) & 0x7FFFFFFFu;
    mine = magnitude > mine ? magnitude : mine;
  }
  shared.largest[thread] = mine;
  block.sync();
  std::uint32_t half = 1;
  while (2 * half < size) half *= 2;
  for (; half > 0; half /= 2) {
    if (thread < half && thread + half < size) {
      const std::uint32_t other = shared.largest[thread + half];
      mine = other > mine ? other : mine;
      shared.largest[thread] = mine;
    }
    block.sync();
  }
}

// Leaves the lanes' sums of squares, each element lifted and divided by the largest.
template <typename Context>
THINWIRE_HOST_DEVICE void add_squares(Context& block, SignShared& shared, const float* x,
                                      std::uint32_t elements, float largest) {
  constexpr auto kLanes = static_cast<std::uint32_t>(kSumLanes);
  const float pre = tern_lift(largest);
  const float inverse = 1.0f / (largest * pre);
  for (std::uint32_t lane = block.thread(); lane < kLanes; lane += block.size()) {
    float total = 0;
    for (std::uint32_t i = lane; i < elements; i += kLanes) {
      const float y = x[i] * pre * inverse;
      total += y * y;
    }
    shared.lanes[0][lane] = total;
  }
  block.sync();
}

// As ref::terngrad_encode(). `first` is the index in the layer of the first element, a multiple of
// 16: a thread makes two bytes of each plane at a time, from one block of Philox.
template <typename Context>
THINWIRE_HOST_DEVICE void write_terngrad(Context& block, SignShared& shared, float clip,
                                         const float* x, std::uint32_t elements,
                                         const PhiloxStream& random, std::uint64_t first,
                                         std::byte* payload) {
  find_largest(block, shared, x, elements);
  const std::uint32_t key = shared.largest[0];
  const float largest = float_of(key);
  const bool sends = key != 0 && key < kFloatInfinityBits;
  if (sends && clip > 0) add_squares(block, shared, x, elements, largest);
  if (block.thread() == 0) {
    TernScale scale{sends || key == 0 ? largest : float_of(kFloatNanBits), 1, 0};
    if (sends) {
      float bound = largest;
      if (clip > 0) bound = tern_clip(clip, largest, folded(shared.lanes[0]), elements);
      scale = tern_scale(bound, largest);
    }
    shared.scale = scale;
    store_word(payload, bits_of(scale.scale));
  }
  block.sync();
  const TernScale scale = shared.scale;
  const auto bytes = static_cast<std::uint32_t>(plane_bytes(elements));
  std::byte* const sent = payload + 4;
  std::byte* const signs = sent + bytes;
  for (std::uint32_t pair = block.thread(); 2 * pair < bytes; pair += block.size()) {
    std::array<std::uint32_t, 4> words{};
    if (sends) words = random.block(first / 16 + pair);
    for (std::uint32_t b = 2 * pair; b < 2 * pair + 2 && b < bytes; ++b) {
      const std::uint32_t low = b % 2 == 0 ? words[0] : words[2];
      const std::uint32_t high = b % 2 == 0 ? words[1] : words[3];
      sent[b] = byte_of_plane(8 * b, elements, [&](std::uint32_t i) {
        const auto number = static_cast<float>(tern_random(i % 8 < 4 ? low : high, i));
        const float magnitude = float_of(bits_of(x[i]) & 0x7FFFFFFFu);
        return sends && number < magnitude * scale.pre * scale.inverse;
      });
      signs[b] = byte_of_plane(8 * b, elements,
                               [&](std::uint32_t i) { return sends && bits_of(x[i]) >> 31 != 0; });
    }
  }
}

template <typename Context, typename Visit>
THINWIRE_HOST_DEVICE void read_terngrad(const Context& block, const std::byte* payload,
                                        std::uint32_t elements, const Visit& visit) {
  const float scale = float_of(load_word(payload));
  const std::byte* const sent = payload + 4;
  const std::byte* const signs = sent + plane_bytes(elements);
  const bool finite = is_finite(scale);
  for (std::uint32_t i = block.thread(); i < elements; i += block.size()) {
    float value = 0;
    if (!finite) {
      value = float_of(kFloatNanBits);
    } else if (bit_of_plane(sent, i)) {
      value = bit_of_plane(signs, i) ? -scale : scale;
    }
    visit(i, value);
  }
}

}  // namespace thinwire::kernels
