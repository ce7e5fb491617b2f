// What is done with each layer's gradient.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "thinwire/comm/average/memory/error_feedback.h"
#include "thinwire/comm/average/memory/momentum_correction.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire::comm {

// One layer's treatment. A null codec sends the layer uncompressed.
struct LayerSetting {
  CodecPtr codec;
  ErrorFeedbackOptions feedback;
  // In place of error feedback, for codecs that send chosen entries.
  std::optional<MomentumCorrectionOptions> momentum;
  // For the first ramp_steps steps of training: codecs of higher density, equally long each, the
  // first one first. Empty without a ramp.
  std::vector<CodecPtr> ramp;
  std::int64_t ramp_steps = 0;
  // Whether the layer may go uncompressed where the link model says that its codec does not pay. A
  // plan of L-GreCo has weighed that already.
  bool may_be_skipped = true;

  // Whether a residual is kept: on request, or where the codec needs one.
  bool uses_feedback() const {
    return codec && !momentum && is_on(feedback.mode, codec->traits().needs_error_feedback);
  }
  // Whether the owner of a slice keeps the loss of encoding its mean.
  bool uses_second_residual() const {
    return codec && is_on(feedback.second_residual, uses_feedback());
  }

  // The codec of a training step; `stage`, where given, becomes its number, 0 after the ramp.
  const CodecPtr& codec_at(std::int64_t step, int* stage = nullptr) const;

  // What parse_layer_setting() reads as this setting, in its shortest canonical form: keys of the
  // layer stand there where they differ from what the codec does by itself. "none" for an
  // uncompressed layer. Does not hold may_be_skipped.
  std::string spec() const;

  // spec(), and whether it holds on any link. Equal text means equal treatment, so this is what the
  // ranks compare.
  std::string text() const;

 private:
  static bool is_on(ErrorFeedbackOptions::Mode mode, bool automatic) {
    using Mode = ErrorFeedbackOptions::Mode;
    return mode == Mode::kOn || (mode == Mode::kAuto && automatic);
  }
};

// Reads one layer's spec: a codec's spec with these keys added; "none" and "identity" send the
// layer uncompressed. Throws InvalidArgument like make_codec().
//   error_feedback=auto|on|off  residual_decay=F (0..1)  residual_reset=N
//   second_residual=auto|on|off
// and for topk, randomk and ternary, whose optimiser must then run without momentum of its own:
//   momentum=F (0..1, below 1)  nesterov=on|off  ramp=N (steps, see momentum_correction.h: the
//   density falls from 25 % in four equal stages of N / 4 steps, counted from step 0)
LayerSetting parse_layer_setting(std::string_view spec);

// Whether `key` is one of the four of error feedback, which any codec takes, and so a policy that
// gives every layer its codec.
bool is_feedback_key(std::string_view key);

// The settings of all layers, by parameter name; a name that it does not list is uncompressed.
// Value type; layers are added, never taken away.
class Plan {
 public:
  void set(std::string name, LayerSetting setting);
  const LayerSetting& of(std::string_view name) const;
  // Whether any layer has a codec.
  bool compresses() const { return compresses_; }
  const std::map<std::string, LayerSetting, std::less<>>& layers() const { return layers_; }

  // A number that no other plan of this process has, but copies of this one: what is derived from a
  // plan can be kept under it.
  std::uint64_t id() const { return id_; }

  // One line a layer, "name: setting"; equal on ranks that have the same plan.
  std::string text() const;

 private:
  std::map<std::string, LayerSetting, std::less<>> layers_;
  bool compresses_ = false;
  std::uint64_t id_ = 0;  // 0: the empty plan
};

}  // namespace thinwire::comm
