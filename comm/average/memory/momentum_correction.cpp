#include "thinwire/comm/average/memory/momentum_correction.h"

#include <algorithm>
#include <cmath>

#include "thinwire/common/error.h"

namespace thinwire {

namespace {

void check_options(const MomentumCorrectionOptions& options) {
  check(options.momentum >= 0 && options.momentum < 1, "momentum must be in [0, 1), got ",
        options.momentum);
}

}  // namespace

MomentumCorrection::MomentumCorrection(MomentumCorrectionOptions options) : options_(options) {
  check_options(options);
}

void MomentumCorrection::correct(std::string_view name, std::span<float> values) {
  correct(name, values, options_);
}

void MomentumCorrection::correct(std::string_view name, std::span<float> values,
                                 const MomentumCorrectionOptions& options) {
  check_options(options);
  const auto known = layers_.find(name);
  const Layer* layer = known == layers_.end() ? nullptr : &known->second;
  check(!layer || layer->velocity.size() == values.size(), "layer '", name, "' had ",
        layer ? layer->velocity.size() : 0, " elements, now it has ", values.size());
  auto waiting = pending_.find(name);
  if (waiting == pending_.end()) {
    if (spare_.empty()) {
      waiting = pending_.emplace(std::string(name), Pending{}).first;
    } else {
      // The smallest that holds the layer, or else the largest, which has to grow least.
      const auto room = [](const auto& node) { return node.mapped().velocity.capacity(); };
      auto best = std::ranges::max_element(spare_, {}, room);
      for (auto node = spare_.begin(); node != spare_.end(); ++node) {
        if (room(*node) >= values.size() && room(*node) < room(*best)) best = node;
      }
      best->key() = name;
      waiting = pending_.insert(std::move(*best)).position;
      spare_.erase(best);
    }
  }
  auto& velocity = waiting->second.velocity;
  velocity.resize(values.size());
  const auto momentum = static_cast<float>(options.momentum);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float gradient = values[i];
    velocity[i] = layer ? momentum * layer->velocity[i] + gradient : gradient;
    const float step = options.nesterov ? momentum * velocity[i] + gradient : velocity[i];
    values[i] = layer ? layer->residual[i] + step : step;
  }
  waiting->second.corrected.assign(values.begin(), values.end());
}

MomentumCorrection::Pending& MomentumCorrection::pending_of(std::string_view name) {
  const auto waiting = pending_.find(name);
  check(waiting != pending_.end(), "layer '", name, "' was not corrected since its last commit");
  return waiting->second;
}

void MomentumCorrection::set_corrected(std::string_view name, std::span<const float> values) {
  Pending& pending = pending_of(name);
  check(values.size() == pending.velocity.size(), "layer '", name, "' has ",
        pending.velocity.size(), " elements, set_corrected() got ", values.size());
  pending.corrected.assign(values.begin(), values.end());
}

void MomentumCorrection::commit(std::string_view name, std::span<const float> corrected,
                                std::span<const float> reconstruction) {
  const std::size_t numel = pending_of(name).velocity.size();
  check(corrected.size() == numel && reconstruction.size() == numel, "layer '", name, "' has ",
        numel, " elements, commit() got ", corrected.size(), " and ", reconstruction.size());
  std::vector<float> residual(numel);
  for (std::size_t i = 0; i < numel; ++i) residual[i] = corrected[i] - reconstruction[i];
  commit(name, residual);
}

void MomentumCorrection::commit(std::string_view name, std::span<const float> residual) {
  Pending& pending = pending_of(name);
  check(residual.size() == pending.velocity.size(), "layer '", name, "' has ",
        pending.velocity.size(), " elements, commit() got ", residual.size());
  auto known = layers_.find(name);
  if (known == layers_.end()) known = layers_.emplace(std::string(name), Layer()).first;
  Layer& layer = known->second;
  layer.residual.assign(residual.begin(), residual.end());
  layer.velocity.resize(residual.size());
  for (std::size_t i = 0; i < residual.size(); ++i) {
    layer.velocity[i] = residual[i] != pending.corrected[i] ? 0 : pending.velocity[i];
  }
  set_aside(pending_.find(name));
}

void MomentumCorrection::abandon(std::string_view name) {
  const auto waiting = pending_.find(name);
  if (waiting != pending_.end()) set_aside(waiting);
}

void MomentumCorrection::set_aside(PendingLayers::iterator layer) {
  spare_.push_back(pending_.extract(layer));
}

std::span<const float> MomentumCorrection::residual(std::string_view name) const {
  const auto found = layers_.find(name);
  return found == layers_.end() ? std::span<const float>{} : found->second.residual;
}

void MomentumCorrection::drop(std::string_view name) {
  const auto found = layers_.find(name);
  if (found != layers_.end()) layers_.erase(found);
}

std::size_t MomentumCorrection::bytes() const {
  std::size_t floats = 0;
  for (const auto& [name, layer] : layers_) {
    floats += layer.velocity.capacity() + layer.residual.capacity();
  }
  const auto add = [&](const Pending& pending) {
    floats += pending.velocity.capacity() + pending.corrected.capacity();
  };
  for (const auto& [name, pending] : pending_) add(pending);
  for (const auto& node : spare_) add(node.mapped());
  return floats * sizeof(float);
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
  spare_.clear();
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
