// What is done with each layer's gradient.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "thinwire/compressors/codec.h"
#include "thinwire/compressors/error_feedback.h"

namespace thinwire::comm {

// One layer's treatment. A null codec sends the layer uncompressed.
struct LayerSetting {
  CodecPtr codec;
  ErrorFeedbackOptions feedback;

  // Whether a residual is kept: on request, or where the codec needs one.
  bool uses_feedback() const {
    using Mode = ErrorFeedbackOptions::Mode;
    return codec && (feedback.mode == Mode::kOn ||
                     (feedback.mode == Mode::kAuto && codec->traits().needs_error_feedback));
  }

  // Canonical text of codec and feedback; "none" for an uncompressed layer. Equal text means equal
  // treatment, so this is what the ranks compare.
  std::string text() const;
};

// Reads one layer's spec: a codec's spec with the keys error_feedback=auto|on|off,
// residual_decay=F and residual_reset=N added; "none" and "identity" send the layer uncompressed.
// Throws InvalidArgument like make_codec().
LayerSetting parse_layer_setting(std::string_view spec);

// The settings of all layers, by parameter name; a name that it does not list is uncompressed.
// Value type; layers are added, never taken away.
class Plan {
 public:
  void set(std::string name, LayerSetting setting);
  const LayerSetting& of(std::string_view name) const;
  // Whether any layer has a codec.
  bool compresses() const { return compresses_; }
  const std::map<std::string, LayerSetting, std::less<>>& layers() const { return layers_; }

  // One line a layer, "name: setting"; equal on ranks that have the same plan.
  std::string text() const;

 private:
  std::map<std::string, LayerSetting, std::less<>> layers_;
  bool compresses_ = false;
};

}  // namespace thinwire::comm
