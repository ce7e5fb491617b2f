#include "thinwire/torch_ext/compression/compression.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "thinwire/comm/average/gradient_recorder.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/common/pattern.h"
#include "thinwire/common/shape.h"

namespace thinwire {
namespace {

bool is_every_layers(const Spec::Argument& argument) {
  return comm::is_feedback_key(argument.key);
}

std::string usual_spec(const CompressionOptions& options) {
  const std::string spec = options.spec.empty() ? Env::get().compression : options.spec;
  return spec.empty() ? "none" : spec;
}

// The policy without layers, where the spec is one.
std::optional<AdaptiveCompression> parse_adaptive(const std::string& text) {
  Spec spec = Spec::parse(text);
  lgreco::check_compression_name(spec.name);
  if (spec.name != "lgreco") return std::nullopt;
  AdaptiveCompression adaptive;
  std::copy_if(spec.arguments.begin(), spec.arguments.end(),
               std::back_inserter(adaptive.layer_arguments), is_every_layers);
  std::erase_if(spec.arguments, is_every_layers);
  adaptive.policy = lgreco::parse_policy(spec);
  return adaptive;
}

comm::LayerSetting parse_override(const std::string& pattern, const std::string& text) {
  check(Spec::parse(text).name != "lgreco", "the override '", pattern,
        "' must name a codec; lgreco(...) is for the model as a whole, got '", text, "'");
  return comm::parse_layer_setting(text);
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

comm::LayerSetting AdaptiveCompression::setting(const std::string& candidate) const {
  Spec spec = Spec::parse(candidate);
  spec.arguments.insert(spec.arguments.end(), layer_arguments.begin(), layer_arguments.end());
  return comm::parse_layer_setting(spec.str());
}

std::string CompressionPlan::text() const {
  if (!adaptive) return plan.text();
  std::string text = concat("policy ", adaptive->policy.str(), "\n");
  for (const Spec::Argument& argument : adaptive->layer_arguments)
    text += concat(argument.key, "=", argument.text, "\n");
  text += plan.text();
  for (const LayerInfo& layer : adaptive->layers) text += concat("allocates ", layer.name, "\n");
  return text;
}

CompressionPlan make_plan(const std::vector<LayerInfo>& layers, const CompressionOptions& options) {
  check(options.warmup_steps >= 0, "warmup_steps must not be negative, got ", options.warmup_steps);
  check(options.min_numel >= 0, "min_numel must not be negative, got ", options.min_numel);
  if (!options.record_gradients.empty())
    comm::GradientRecorder::check_steps(options.record_from, options.record_steps);
  const std::string spec = usual_spec(options);
  CompressionPlan made{.plan = {}, .adaptive = parse_adaptive(spec)};
  const comm::LayerSetting usual =
      made.adaptive ? made.adaptive->setting(made.adaptive->policy.reference.str())
                    : comm::parse_layer_setting(spec);

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
      made.plan.set(layer.name, usual);
      if (made.adaptive) made.adaptive->layers.push_back(layer);
    }
  }
  return made;
}

}  // namespace thinwire
