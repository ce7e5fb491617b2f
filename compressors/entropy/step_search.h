// Which steps are tried so that a payload fills its slot and does not overflow it; and what is
// sampled of its values first. The CPU and the CUDA kernels share it.
#pragma once

#include <cstddef>

#include "thinwire/compressors/entropy/fixed_log.h"

namespace thinwire::entropy {

// Of a slot's bits: a payload of fewer than `full` leaves room for a finer step, and one of more
// than `most` takes too many; `aim` is where the next step should be.
struct SlotShares {
  double full = 0.985, aim = 0.993, most = 1.002;
};

// A sample is right within half a per cent or so: the payload is then within StepSearch's shares.
inline constexpr SlotShares kSharesOfSample = {.full = 0.99, .aim = 0.993, .most = 0.996};

// In the last try nothing is sent.
inline constexpr int kTries = 24;
inline constexpr int kSampledTries = 6;
// Steps beyond these have no inverse, or no multiples.
inline constexpr float kSmallestStep = 1e-30f, kLargestStep = 1e30f;
THINWIRE_HOST_DEVICE bool usable_step(float step) {
  return step >= kSmallestStep && step <= kLargestStep;
}
// Tries with steps that are near one another have the same zones.
THINWIRE_HOST_DEVICE bool near_steps(float a, float b) {
  constexpr float kNear = 1.2f;
  return a < kNear * b && b < kNear * a;
}

// What any payload of so many parts takes: size and step, a byte a part and one of the excess, and
// two states.
THINWIRE_HOST_DEVICE std::uint64_t least_payload_bytes(std::uint64_t parts) {
  return 8 + parts + 1 + 2 * 4;
}
// What a payload would have taken beyond that, in whole bytes.
THINWIRE_HOST_DEVICE std::uint32_t wanted_beyond_least(double bits, std::uint64_t parts) {
  const double bytes = bits / 8 - static_cast<double>(least_payload_bytes(parts));
  return static_cast<std::uint32_t>(bytes < 0 ? 0 : bytes > 4e9 ? 4e9 : bytes);
}

// A sample has runs of elements in a row. Number `run` of `runs` in a part of `numel` elements is
// somewhere in its share of the part, where the number that was drawn for it says: rows that repeat
// would be met at the same places.
inline constexpr std::uint32_t kSampledRun = 16;
struct SampledRun {
  std::uint64_t begin, length;
};
THINWIRE_HOST_DEVICE SampledRun sampled_run(std::uint64_t numel, std::uint64_t run,
                                            std::uint64_t runs, std::uint64_t drawn) {
  const std::uint64_t begin = numel * run / runs, end = numel * (run + 1) / runs;
  const std::uint64_t length = end - begin < kSampledRun ? end - begin : kSampledRun;
  return {begin + (drawn >> 32) % (end - begin - length + 1), length};
}
// The number after that.
THINWIRE_HOST_DEVICE std::uint64_t next_drawn(std::uint64_t drawn) {
  return drawn * 0x9E3779B97F4A7C15u + 1;
}
// The number after so many more, by squaring.
THINWIRE_HOST_DEVICE std::uint64_t drawn_after(std::uint64_t drawn, std::uint64_t more) {
  std::uint64_t factor = 0x9E3779B97F4A7C15u, offset = 1;
  for (; more > 0; more /= 2) {
    if (more % 2 != 0) drawn = drawn * factor + offset;
    offset = offset * factor + offset;
    factor *= factor;
  }
  return drawn;
}

// The steps that are tried for one payload: the same on all hosts and devices, for every operation
// is rounded in one way (fixed_log.h). Value type.
class StepSearch {
 public:
  // Of a slot, and of what any payload takes of it, in bits.
  THINWIRE_HOST_DEVICE StepSearch(double slot, double least, std::size_t numel, bool fill,
                                  SlotShares shares = {})
      : slot_(slot),
        least_(least),
        numel_(static_cast<double>(numel)),
        fill_(fill),
        shares_(shares) {}

  THINWIRE_HOST_DEVICE bool full(double bits) const { return bits >= shares_.full * slot_; }
  // Whether a payload that takes about so many bits is written rather than another one tried.
  THINWIRE_HOST_DEVICE bool takes(double bits) const {
    return bits <= shares_.most * slot_ && (!fill_ || full(bits) || finer_ == kMostFiner);
  }
  // Whether a step that fits is known, and a finer one is tried.
  THINWIRE_HOST_DEVICE bool refines() const { return fits_.step > 0; }

  // How many bits more a step takes than another one near it, which takes so many; about.
  THINWIRE_HOST_DEVICE double bits_between(float step, float other, double bits) const {
    return bits > 0 ? bits_an_octave(bits) * log2_of(double{other} / step) : 0;
  }

  // The step to try after one that takes so many bits, and leaves room or takes too many.
  THINWIRE_HOST_DEVICE float after(float step, double bits, bool leaves_room) {
    ++tries_;
    note_slope(step, bits);
    if (leaves_room) {
      fits_ = {step, bits};
    } else if (step == fits_.step) {  // the estimate was wrong
      fits_ = {};
      finer_ = kMostFiner;
    } else {
      over_ = {step, bits};
    }
    if (refines() && (finer_ == kMostFiner || bits == 0)) {
      finer_ = kMostFiner;
      return fits_.step;
    }
    if (refines()) ++finer_;
    const double aim = shares_.aim * slot_;
    double octaves = 0;  // from `step`, or from that which fits
    if (refines() && over_.step > 0) {
      step = fits_.step;
      octaves = log2_of(double{over_.step} / step) *
                within((aim - fits_.bits) / (over_.bits - fits_.bits), 0.1, 0.9);
    } else {
      octaves = within((bits - aim) / bits_an_octave(bits), -2.0, 2.0);
    }
    // Where there are few elements almost nothing of what tables take: each try goes further.
    if (!refines()) octaves = larger(octaves, kLeastOctaves + kMoreOctaves * (tries_ - 1));
    octaves = nearest(1024 * octaves) / 1024;
    return step * static_cast<float>(exp2_of(octaves));
  }

 private:
  THINWIRE_HOST_DEVICE static double larger(double a, double b) { return a < b ? b : a; }
  THINWIRE_HOST_DEVICE static double smaller(double a, double b) { return b < a ? b : a; }
  THINWIRE_HOST_DEVICE static double within(double x, double low, double high) {
    return x < low ? low : high < x ? high : x;
  }
  THINWIRE_HOST_DEVICE static double nearest(double x) {
    return static_cast<double>(static_cast<std::int64_t>(x + (x < 0 ? -0.5 : 0.5)));
  }

  struct Try {
    float step = 0;
    double bits = 0;
  };
  // What the last two tries say, else about what gradients do: one a code at high rates, fewer at
  // low ones, where most of the bits are those of values far above the step.
  THINWIRE_HOST_DEVICE double bits_an_octave(double bits) const {
    if (slope_ > 0) return slope_;
    const double rate = larger((bits - least_) / numel_, 1e-3);
    return numel_ * smaller(1.0, 0.75 * exp2_of(0.4 * log2_of(rate)));
  }
  THINWIRE_HOST_DEVICE void note_slope(float step, double bits) {
    if (last_.step > 0 && step > 0 && bits > 0 && step != last_.step) {
      const double found = (last_.bits - bits) / log2_of(double{step} / last_.step);
      if (found > 0.1 * bits_an_octave(bits)) slope_ = found;
    }
    last_ = {step, bits};
  }

  static constexpr double kLeastOctaves = 0.004;
  static constexpr double kMoreOctaves = 0.1;  // 28 in all tries
  static constexpr int kMostFiner = 3;
  double slot_, least_, numel_;
  bool fill_;
  SlotShares shares_;
  Try fits_, over_;  // the finest that leaves room, and the last that takes too many bits
  Try last_;
  double slope_ = 0;  // bits an octave, 0: not known
  int finer_ = 0, tries_ = 0;
};

}  // namespace thinwire::entropy
