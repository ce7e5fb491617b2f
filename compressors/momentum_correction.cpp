#include "thinwire/compressors/momentum_correction.h"

#include <cmath>

#include "thinwire/common/error.h"

namespace thinwire {

MomentumCorrection::MomentumCorrection(MomentumCorrectionOptions options) : options_(options) {
  check(options.momentum >= 0 && options.momentum < 1, "momentum must be in [0, 1), got ",
        options.momentum);
}

void MomentumCorrection::correct(std::string_view name, std::span<float> values) {
  const auto known = layers_.find(name);
  const Layer* layer = known == layers_.end() ? nullptr : &known->second;
  check(!layer || layer->velocity.size() == values.size(), "layer '", name, "' had ",
        layer ? layer->velocity.size() : 0, " elements, now it has ", values.size());
  auto waiting = pending_.find(name);
  if (waiting == pending_.end())
    waiting = pending_.emplace(std::string(name), std::vector<float>()).first;
  auto& velocity = waiting->second;
  velocity.resize(values.size());
  const auto momentum = static_cast<float>(options_.momentum);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float gradient = values[i];
    velocity[i] = layer ? momentum * layer->velocity[i] + gradient : gradient;
    const float step = options_.nesterov ? momentum * velocity[i] + gradient : velocity[i];
    values[i] = layer ? layer->residual[i] + step : step;
  }
}

void MomentumCorrection::commit(std::string_view name, std::span<const float> corrected,
                                std::span<const float> reconstruction) {
  const auto waiting = pending_.find(name);
  check(waiting != pending_.end() && !waiting->second.empty() == !corrected.empty(), "layer '",
        name, "' was not corrected since its last commit");
  auto& velocity = waiting->second;
  check(corrected.size() == velocity.size() && reconstruction.size() == velocity.size(), "layer '",
        name, "' has ", velocity.size(), " elements, commit() got ", corrected.size(), " and ",
        reconstruction.size());
  auto known = layers_.find(name);
  if (known == layers_.end()) known = layers_.emplace(std::string(name), Layer()).first;
  Layer& layer = known->second;
  layer.residual.resize(velocity.size());
  for (std::size_t i = 0; i < velocity.size(); ++i) {
    layer.residual[i] = corrected[i] - reconstruction[i];
    if (reconstruction[i] != 0) velocity[i] = 0;
  }
  layer.velocity.swap(velocity);
  velocity.clear();
}

void MomentumCorrection::load_state(State state) {
  for (const auto& [name, layer] : state) {
    check(layer.velocity.size() == layer.residual.size(), "layer '", name, "' has ",
          layer.velocity.size(), " velocities and ", layer.residual.size(), " residuals");
  }
  layers_ = std::move(state);
  pending_.clear();
}

void MomentumCorrection::reset() {
  layers_.clear();
  pending_.clear();
}

double warmup_density(double target, double epoch, double warmup_epochs) {
  constexpr double kStart = 0.25;
  check(target > 0 && target <= 1, "the density must be in (0, 1], got ", target);
  check(epoch >= 0 && warmup_epochs >= 0, "epochs must not be negative, got ", epoch, " and ",
        warmup_epochs);
  if (target >= kStart || epoch >= warmup_epochs) return target;
  return kStart * std::pow(target / kStart, epoch / warmup_epochs);
}

}  // namespace thinwire
