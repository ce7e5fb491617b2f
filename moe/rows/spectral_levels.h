// Quantisers of a standard normal number with the least mean squared error (Max, "Quantizing for
// minimum distortion", 1960; Lloyd, 1982): the levels of 1 to 7 bits. Constants, not computed, so
// that sender and receiver agree on every bit.
#pragma once

#include <array>
#include <span>

namespace thinwire::moe {

inline constexpr int kMostLevelBits = 7;

// Mean squared error of b bits at unit variance; 0 bits send nothing.
inline constexpr double kLevelDistortion[kMostLevelBits + 1] = {
    1.0, 0.363380228, 0.117481848, 0.034547761, 0.009501008, 0.002504668, 0.000644240, 0.000163478};

namespace detail {
// The positive levels of 1 bit, of 2 bits, ...: 2^(b-1) of them from 2^(b-1) - 1 on. The negative
// ones mirror them.
inline constexpr float kPositiveLevels[127] = {
    0.79788456f,
    // 2 bits
    0.45278003f, 1.51041761f,
    // 3 bits
    0.24509418f, 0.75600528f, 1.34390928f, 2.15194570f,
    // 4 bits
    0.12839503f, 0.38804830f, 0.65675912f, 0.94234046f, 1.25623120f, 1.61804639f, 2.06901723f,
    2.73258957f,
    // 5 bits
    0.06588966f, 0.19805183f, 0.33137831f, 0.46669952f, 0.60493362f, 0.74713570f, 0.89456512f,
    1.04878332f, 1.21180438f, 1.38634034f, 1.57622808f, 1.78723322f, 2.02872840f, 2.31773940f,
    2.69111958f, 3.26073249f,
    // 6 bits
    0.03340951f, 0.10027829f, 0.16729690f, 0.23456699f, 0.30219285f, 0.37028265f, 0.43894967f,
    0.50831378f, 0.57850303f, 0.64965558f, 0.72192194f, 0.79546766f, 0.87047659f, 0.94715495f,
    1.02573635f, 1.10648824f, 1.18972014f, 1.27579449f, 1.36514102f, 1.45827638f, 1.55583123f,
    1.65858890f, 1.76754188f, 1.88397724f, 2.00961104f, 2.14681022f, 2.29898121f, 2.47130480f,
    2.67227384f, 2.91740679f, 3.24043706f, 3.74410127f,
    // 7 bits
    0.01682817f, 0.05049086f, 0.08417264f, 0.11788628f, 0.15164465f, 0.18546072f, 0.21934764f,
    0.25331873f, 0.28738756f, 0.32156794f, 0.35587403f, 0.39032030f, 0.42492165f, 0.45969343f,
    0.49465148f, 0.52981221f, 0.56519266f, 0.60081053f, 0.63668431f, 0.67283333f, 0.70927785f,
    0.74603914f, 0.78313962f, 0.82060296f, 0.85845421f, 0.89671996f, 0.93542849f, 0.97460998f,
    1.01429667f, 1.05452319f, 1.09532672f, 1.13674739f, 1.17882860f, 1.22161742f, 1.26516511f,
    1.30952762f, 1.35476629f, 1.40094856f, 1.44814893f, 1.49645000f, 1.54594375f, 1.59673313f,
    1.64893391f, 1.70267703f, 1.75811144f, 1.81540772f, 1.87476255f, 1.93640456f, 2.00060177f,
    2.06767148f, 2.13799338f, 2.21202752f, 2.29033916f, 2.37363427f, 2.46281143f, 2.55904052f,
    2.66388654f, 2.77951426f, 2.90904708f, 3.05724615f, 3.23193321f, 3.44743027f, 3.73493665f,
    4.18969416f};

struct LevelTable {
  // [bits][code]: ascending levels, and the thresholds between them.
  std::array<std::array<float, 1 << kMostLevelBits>, kMostLevelBits + 1> levels{};
  std::array<std::array<float, 1 << kMostLevelBits>, kMostLevelBits + 1> thresholds{};

  constexpr LevelTable() {
    for (int bits = 1; bits <= kMostLevelBits; ++bits) {
      const int half = 1 << (bits - 1);
      for (int i = 0; i < half; ++i) {
        const float level = kPositiveLevels[half - 1 + i];
        levels[bits][half + i] = level;
        levels[bits][half - 1 - i] = -level;
      }
      for (int i = 0; i + 1 < 2 * half; ++i) {
        thresholds[bits][i] = 0.5f * (levels[bits][i] + levels[bits][i + 1]);
      }
    }
  }
};
inline constexpr LevelTable kLevelTable{};
}  // namespace detail

// The 2^bits levels in ascending order, and the 2^bits - 1 thresholds between them.
inline std::span<const float> levels_of(int bits) {
  return std::span(detail::kLevelTable.levels[static_cast<std::size_t>(bits)])
      .first(std::size_t{1} << bits);
}
inline std::span<const float> thresholds_of(int bits) {
  return std::span(detail::kLevelTable.thresholds[static_cast<std::size_t>(bits)])
      .first((std::size_t{1} << bits) - 1);
}

}  // namespace thinwire::moe
