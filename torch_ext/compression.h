// From what the user asks for to the plan of every layer.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "thinwire/comm/reductions/plan.h"

namespace thinwire {

// How gradients are compressed. Every rank must pass the same values. A spec converts to it.
struct CompressionOptions {
  CompressionOptions() = default;
  CompressionOptions(std::string text) : spec(std::move(text)) {}
  CompressionOptions(const char* text) : spec(text) {}

  // Spec of a codec, `quantize(bits=4)`, with error_feedback=auto|on|off where wanted; "none" sends
  // everything uncompressed. Empty: THINWIRE_COMPRESSION, else none.
  std::string spec;
  // The first so many steps are sent uncompressed, while gradients are large and turn quickly.
  std::int64_t warmup_steps = 0;
  // Layers of fewer elements, and all with less than two dimensions (biases, normalisation), are
  // sent uncompressed: they weigh little and suffer most.
  std::int64_t min_numel = 1024;
  bool compress_1d = false;
  // Exceptions by name: the first entry whose pattern matches a parameter's name gives its spec,
  // whatever the two rules above say. '*' matches any text, '?' one character.
  std::vector<std::pair<std::string, std::string>> overrides;
  // Source of all randomness of the codecs.
  std::uint64_t seed = 0;
};

// A parameter as far as a plan needs it.
struct LayerInfo {
  std::string name;
  std::vector<std::int64_t> shape;
};

// The settings of all layers after warm-up. Throws InvalidArgument for a bad spec, or for an
// override that matches no layer.
comm::Plan make_plan(const std::vector<LayerInfo>& layers, const CompressionOptions& options);

// Whether `pattern` matches the whole of `name`; '*' matches any text, '?' one character.
bool matches_pattern(std::string_view pattern, std::string_view name);

}  // namespace thinwire
