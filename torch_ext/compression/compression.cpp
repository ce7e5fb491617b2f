#include "thinwire/torch_ext/compression/compression.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <string_view>

#include "thinwire/comm/average/gradient_recorder.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/common/pattern.h"
#include "thinwire/common/shape.h"
#include "thinwire/compressors/allocation/automatic.h"

namespace thinwire {
namespace {

bool is_every_layers(const Spec::Argument& argument) {
  return comm::is_feedback_key(argument.key);
}

std::string usual_spec(const CompressionOptions& options) {
  const std::string spec = options.spec.empty() ? Env::get().compression : options.spec;
  return spec.empty() ? "none" : spec;
}

// What a spec for the model as a whole names.
struct ParsedSpec {
  comm::LayerSetting usual;  // of the layers to begin with
  std::optional<AdaptiveCompression> adaptive = {};
  std::optional<AutomaticCompression> automatic = {};

  PolicyLayers* policy() {
    if (adaptive) return &*adaptive;
    return automatic ? &*automatic : nullptr;
  }
};

ParsedSpec parse_spec(const std::string& text) {
  Spec spec = Spec::parse(text);
  lgreco::check_compression_name(spec.name);
  if (!lgreco::is_policy(spec.name)) return {.usual = comm::parse_layer_setting(text)};
  PolicyLayers layers;
  std::ranges::copy_if(spec.arguments, std::back_inserter(layers.layer_arguments), is_every_layers);
  std::erase_if(spec.arguments, is_every_layers);
  if (spec.name == "auto") {
    AutomaticCompression automatic{layers, automatic_ladder(spec)};
    // What is wrong with an argument of all layers is noticed now.
    for (const std::string& candidate : automatic.ladder) automatic.setting(candidate);
    return {.usual = {}, .automatic = std::move(automatic)};
  }
  AdaptiveCompression adaptive{layers, lgreco::parse_policy(spec)};
  const comm::LayerSetting usual = adaptive.setting(adaptive.policy.reference.str());
  return {.usual = usual, .adaptive = std::move(adaptive)};
}

comm::LayerSetting parse_override(const std::string& pattern, const std::string& text) {
  const std::string name = Spec::parse(text).name;
  check(!lgreco::is_policy(name), "the override '", pattern, "' must name a codec; ", name,
        "(...) is for the model as a whole, got '", text, "'");
  return comm::parse_layer_setting(text);
}

// auto goes from one codec to the next, which not every reduction can average.
void check_strategy_of_auto(const std::string& strategy) {
  constexpr std::array<std::string_view, 4> kPossible = {"auto", "scatter_reduce", "gather_reduce",
                                                         "hierarchical"};
  check(std::ranges::find(kPossible, strategy) != kPossible.end(),
        "auto averages by the strategy auto, scatter_reduce, gather_reduce or hierarchical, got '",
        strategy, "'");
}

const std::pair<std::string, std::string>* override_of(const LayerInfo& layer,
                                                       const CompressionOptions& options) {
  for (const auto& entry : options.overrides) {
    if (matches_pattern(entry.first, layer.name)) return &entry;
  }
  return nullptr;
}

// Whether the rules for small and flat layers rule the layer out.
bool stays_uncompressed(const LayerInfo& layer, const CompressionOptions& options) {
  return numel_of(layer.shape) < options.min_numel ||
         (layer.shape.size() < 2 && !options.compress_1d);
}

}  // namespace

LayerInfo layer_of(const std::string& name, const at::Tensor& parameter) {
  LayerInfo layer{name, parameter.sizes().vec(),
                  static_cast<std::size_t>(parameter.element_size())};
  if (parameter.is_complex()) {
    layer.shape.push_back(2);
    layer.element_bytes /= 2;
  }
  return layer;
}

comm::LayerSetting PolicyLayers::setting(const std::string& candidate) const {
  if (candidate == "none") return {};
  Spec spec = Spec::parse(candidate);
  spec.arguments.insert(spec.arguments.end(), layer_arguments.begin(), layer_arguments.end());
  return comm::parse_layer_setting(spec.str());
}

std::string CompressionPlan::text() const {
  if (!adaptive && !automatic) return plan.text();
  const PolicyLayers& policy = adaptive ? static_cast<const PolicyLayers&>(*adaptive) : *automatic;
  std::string text = "policy ";
  if (adaptive) {
    text += adaptive->policy.str();
  } else {
    text += "auto";
    for (const std::string& setting : automatic->ladder) text += concat(" ", setting);
  }
  text += "\n";
  for (const Spec::Argument& argument : policy.layer_arguments)
    text += concat(argument.key, "=", argument.text, "\n");
  text += plan.text();
  for (const LayerInfo& layer : policy.layers) text += concat("allocates ", layer.name, "\n");
  return text;
}

CompressionPlan make_plan(const std::vector<LayerInfo>& layers, const CompressionOptions& options) {
  check(options.warmup_steps >= 0, "warmup_steps must not be negative, got ", options.warmup_steps);
  check(options.min_numel >= 0, "min_numel must not be negative, got ", options.min_numel);
  if (!options.record_gradients.empty())
    comm::GradientRecorder::check_steps(options.record_from, options.record_steps);
  ParsedSpec parsed = parse_spec(usual_spec(options));
  if (parsed.automatic) check_strategy_of_auto(options.strategy);
  CompressionPlan made;

  std::map<std::string, comm::LayerSetting> overrides;
  for (const auto& [pattern, text] : options.overrides) {
    overrides.emplace(pattern, parse_override(pattern, text));
    check(std::any_of(layers.begin(), layers.end(),
                      [&, &pattern = pattern](const LayerInfo& layer) {
                        return matches_pattern(pattern, layer.name);
                      }),
          "the override '", pattern, "' matches none of the model's parameters");
  }

  for (const LayerInfo& layer : layers) {
    if (const auto* exception = override_of(layer, options)) {
      made.plan.set(layer.name, overrides.at(exception->first));
    } else if (stays_uncompressed(layer, options)) {
      made.plan.set(layer.name, {});
    } else {
      made.plan.set(layer.name, parsed.usual);
      if (PolicyLayers* policy = parsed.policy()) policy->layers.push_back(layer);
    }
  }
  made.adaptive = std::move(parsed.adaptive);
  made.automatic = std::move(parsed.automatic);
  return made;
}

}  // namespace thinwire
