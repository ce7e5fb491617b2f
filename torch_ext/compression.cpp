#include "thinwire/torch_ext/compression.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "thinwire/common/env.h"
#include "thinwire/common/error.h"

namespace thinwire {

bool matches_pattern(std::string_view pattern, std::string_view name) {
  // Greedy with one point of return: the last '*', which is let match one character more.
  std::size_t p = 0, n = 0;
  std::size_t star = std::string_view::npos, resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

comm::Plan make_plan(const std::vector<LayerInfo>& layers, const CompressionOptions& options) {
  check(options.warmup_steps >= 0, "warmup_steps must not be negative, got ", options.warmup_steps);
  check(options.min_numel >= 0, "min_numel must not be negative, got ", options.min_numel);
  std::string spec = options.spec.empty() ? Env::get().compression : options.spec;
  const comm::LayerSetting usual = comm::parse_layer_setting(spec.empty() ? "none" : spec);

  std::vector<comm::LayerSetting> overrides;
  for (const auto& [pattern, text] : options.overrides) {
    overrides.push_back(comm::parse_layer_setting(text));
    check(std::any_of(layers.begin(), layers.end(),
                      [&, &pattern = pattern](const LayerInfo& layer) {
                        return matches_pattern(pattern, layer.name);
                      }),
          "the override '", pattern, "' matches none of the model's parameters");
  }

  comm::Plan plan;
  for (const LayerInfo& layer : layers) {
    const auto overridden =
        std::find_if(options.overrides.begin(), options.overrides.end(),
                     [&](const auto& entry) { return matches_pattern(entry.first, layer.name); });
    if (overridden != options.overrides.end()) {
      plan.set(layer.name,
               overrides[static_cast<std::size_t>(overridden - options.overrides.begin())]);
      continue;
    }
    const auto numel = std::accumulate(layer.shape.begin(), layer.shape.end(), std::int64_t{1},
                                       std::multiplies<>());
    const bool small = numel < options.min_numel;
    const bool flat = layer.shape.size() < 2 && !options.compress_1d;
    plan.set(layer.name, small || flat ? comm::LayerSetting{} : usual);
  }
  return plan;
}

}  // namespace thinwire
