// Which steps are tried so that a payload fills its slot and does not overflow it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "thinwire/compressors/entropy/fixed_log.h"

namespace thinwire::entropy {

// Of a slot's bits: a payload of fewer than `full` leaves room for a finer step, and one of more
// than `most` takes too many; `aim` is where the next step should be.
struct SlotShares {
  double full = 0.985, aim = 0.993, most = 1.002;
};

// The steps that are tried for one payload: the same on all hosts and devices, for every operation
// is rounded in one way (fixed_log.h). Value type.
class StepSearch {
 public:
  // Of a slot, and of what any payload takes of it, in bits.
  StepSearch(double slot, double least, std::size_t numel, bool fill, SlotShares shares = {})
      : slot_(slot),
        least_(least),
        numel_(static_cast<double>(numel)),
        fill_(fill),
        shares_(shares) {}

  bool full(double bits) const { return bits >= shares_.full * slot_; }
  // Whether a payload that takes about so many bits is written rather than another one tried.
  bool takes(double bits) const {
    return bits <= shares_.most * slot_ && (!fill_ || full(bits) || finer_ == kMostFiner);
  }
  // Whether a step that fits is known, and a finer one is tried.
  bool refines() const { return fits_.step > 0; }

  // How many bits more a step takes than another one near it, which takes so many; about.
  double bits_between(float step, float other, double bits) const {
    return bits > 0 ? bits_an_octave(bits) * log2_of(double{other} / step) : 0;
  }

  // The step to try after one that takes so many bits, and leaves room or takes too many.
  float after(float step, double bits, bool leaves_room) {
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
                std::clamp((aim - fits_.bits) / (over_.bits - fits_.bits), 0.1, 0.9);
    } else {
      octaves = std::clamp((bits - aim) / bits_an_octave(bits), -2.0, 2.0);
    }
    // Where there are few elements almost nothing of what tables take: each try goes further.
    if (!refines()) octaves = std::max(octaves, kLeastOctaves + kMoreOctaves * (tries_ - 1));
    octaves = std::round(1024 * octaves) / 1024;
    return step * static_cast<float>(exp2_of(octaves));
  }

 private:
  struct Try {
    float step = 0;
    double bits = 0;
  };
  // What the last two tries say, else about what gradients do: one a code at high rates, fewer at
  // low ones, where most of the bits are those of values far above the step.
  double bits_an_octave(double bits) const {
    if (slope_ > 0) return slope_;
    const double rate = std::max((bits - least_) / numel_, 1e-3);
    return numel_ * std::min(1.0, 0.75 * exp2_of(0.4 * log2_of(rate)));
  }
  void note_slope(float step, double bits) {
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
