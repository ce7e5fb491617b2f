// The probability models of the range coder: one for each level L in 1..255, under which the bits
// of a mask byte are independently set with probability L / 256.
//
// A byte with c set bits has the weight L^c (256 - L)^(8-c) out of 2^64, and the frequency
// 1 + floor(weight * (2^15 - 256) / 2^64) out of 2^15; the byte of largest weight, 0x00 for
// L <= 128 and 0xFF else, also gets what is left of 2^15. All in integers, so that every
// implementation has the same tables.
#pragma once

#include <array>
#include <cstdint>

namespace thinwire::peft::detail {

// With 14 bits the least frequency of 1 costs 0.5 % of the payload at a density of 5 %; with 16 the
// slot table (64 KiB) is twice a first-level cache.
inline constexpr int kRansBits = 15;
inline constexpr std::uint32_t kRansTotal = 1u << kRansBits;
// States lie in [2^16, 2^32) between symbols and give or take 16 bits at a time.
inline constexpr int kReciprocalBits = 32 + kRansBits;
inline constexpr std::uint32_t kRansLow = 1u << 16;
// Symbol i of a block belongs to state i % kRansStates: as many independent chains hide the latency
// of a step.
inline constexpr std::size_t kRansStates = 8;

struct RansModel {
  struct Encode {
    // floor(2^47 / frequency) + 1: (x * reciprocal) >> 47 == x / frequency for x < frequency *
    // 2^17, and the product stays below 2^64 because frequency <= 2^15.
    std::uint64_t reciprocal;
    std::uint16_t frequency;
    std::uint16_t start;
  };
  struct Decode {
    std::uint16_t frequency;
    std::uint16_t start;
  };

  std::array<std::uint8_t, kRansTotal> symbol_of_slot;
  std::array<Decode, 256> decode;
  std::array<Encode, 256> encode;
};

// The model of a level in 1..255, built at its first use. Thread-safe.
const RansModel& rans_model(int level);

// The level whose model codes `ones` set entries out of `entries` best: 0 where none is set.
int best_level(std::int64_t ones, std::int64_t entries);

// Estimated bits of entries under a level: their Bernoulli entropy and what the least frequencies
// take away from all bytes.
double level_cost(int level, std::int64_t ones, std::int64_t entries);

}  // namespace thinwire::peft::detail
