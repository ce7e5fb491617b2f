// From what the user asks for to the plan of every layer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/comm/average/plan.h"
#include "thinwire/compressors/allocation/policy.h"
#include "thinwire/torch_ext/compression/compression_options.h"

namespace thinwire {

// A parameter as far as a plan needs it.
struct LayerInfo {
  std::string name;
  std::vector<std::int64_t> shape;
  std::size_t element_bytes = sizeof(float);
};

// Of a parameter's gradient as it is averaged: complex numbers are pairs of real ones, in a last
// dimension of 2.
LayerInfo layer_of(const std::string& name, const at::Tensor& parameter);

// What a policy gives settings to.
struct PolicyLayers {
  // Those to which neither an override nor the rules for small and flat layers apply, in the order
  // given.
  std::vector<LayerInfo> layers;
  // Arguments of the spec that are not the policy's but every layer's: error_feedback and the like.
  std::vector<Spec::Argument> layer_arguments;

  // The setting of a layer for which `candidate` was chosen.
  comm::LayerSetting setting(const std::string& candidate) const;
};

// What lgreco(...) is to do with a model.
struct AdaptiveCompression : PolicyLayers {
  lgreco::Policy policy;
};

// What auto(...) is to do with it.
struct AutomaticCompression : PolicyLayers {
  std::vector<std::string> ladder;  // see automatic_ladder()
};

struct CompressionPlan {
  // The settings of all layers after warm-up; for lgreco(...) its uniform reference, for auto no
  // compression: what training starts from.
  comm::Plan plan;
  // Nothing where the spec names a codec, at most one where it names a policy.
  std::optional<AdaptiveCompression> adaptive;
  std::optional<AutomaticCompression> automatic;

  // All that must be equal on the ranks, a line each.
  std::string text() const;
};

// Throws InvalidArgument for options out of range, a bad spec, or an override that matches no
// layer.
CompressionPlan make_plan(const std::vector<LayerInfo>& layers, const CompressionOptions& options);

}  // namespace thinwire
