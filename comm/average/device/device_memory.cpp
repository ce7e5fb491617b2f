#include "thinwire/comm/average/device/device_memory.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <bit>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

std::vector<float> host_copy(const at::Tensor& tensor) {
  const at::Tensor host = tensor.cpu();
  const auto* first = host.const_data_ptr<float>();
  return {first, first + host.numel()};
}

// The vector outlives the call, which waits.
at::Tensor device_copy(std::span<const float> values, at::Device device) {
  return at::from_blob(const_cast<float*>(values.data()),
                       {static_cast<std::int64_t>(values.size())}, at::kFloat)
      .to(device);
}

bool is_nothing(float value) {
  return std::bit_cast<std::uint32_t>(value) == 0x80000000u;
}

}  // namespace

at::Tensor DeviceMemory::filled(std::int64_t numel, float value) const {
  return at::full({numel}, value, at::TensorOptions(at::kFloat).device(device_));
}

at::Tensor DeviceMemory::residual(std::string_view name, std::int64_t numel) {
  auto found = residuals_.find(name);
  if (found == residuals_.end()) found = residuals_.emplace(name, filled(numel, 0)).first;
  check(found->second.numel() == numel, "error feedback: layer '", name, "' has ", numel,
        " elements, but its residual has ", found->second.numel());
  return found->second;
}

at::Tensor DeviceMemory::held(std::string_view name) const {
  const auto found = residuals_.find(name);
  return found == residuals_.end() ? at::Tensor() : found->second;
}

DeviceMemory::Momentum DeviceMemory::momentum(std::string_view name, std::int64_t numel) {
  auto found = momentum_.find(name);
  if (found == momentum_.end()) {
    found = momentum_.emplace(name, Momentum{filled(numel, -0.0f), filled(numel, -0.0f), {}}).first;
  }
  Momentum& layer = found->second;
  check(layer.velocity.numel() == numel, "layer '", name, "' had ", layer.velocity.numel(),
        " elements, now it has ", numel);
  if (!layer.next.defined()) layer.next = filled(numel, 0);
  return layer;
}

at::Tensor DeviceMemory::held_momentum(std::string_view name) const {
  const auto found = momentum_.find(name);
  return found == momentum_.end() ? at::Tensor() : found->second.residual;
}

at::Tensor DeviceMemory::warm_start(std::string_view name, std::int64_t cols,
                                    std::int64_t columns) {
  auto found = starts_.find(name);
  if (found == starts_.end()) found = starts_.emplace(name, Start()).first;
  Start& start = found->second;
  const std::int64_t known = start.q.defined() && start.cols == cols ? start.q.numel() : 0;
  if (known > 0 && known >= columns * cols) return start.q;
  // The addresses of the old memory are in tables.
  if (start.q.defined()) ++version_;
  at::Tensor q = filled(columns * cols, -0.0f);
  if (known > 0) q.narrow(0, 0, known).copy_(start.q);
  start = {cols, q};
  return q;
}

at::Tensor DeviceMemory::second(std::string_view name, SecondResidual::Extent extent) {
  auto layer = second_.find(name);
  if (layer == second_.end()) layer = second_.emplace(name, Ranges()).first;
  at::Tensor& values = layer->second[extent];
  if (!values.defined()) values = filled(extent.numel, -0.0f);
  return values;
}

at::Tensor DeviceMemory::orphans(std::string_view name, std::int64_t numel, Extents owned) const {
  at::Tensor all;
  const auto layer = second_.find(name);
  if (layer == second_.end()) return all;
  for (const auto& [extent, values] : layer->second) {
    if (std::ranges::binary_search(owned, extent)) continue;
    if (!all.defined()) all = filled(numel, -0.0f);
    all.narrow(0, extent.begin, extent.numel).add_(values);
  }
  return all;
}

void DeviceMemory::drop_residual(std::string_view name) {
  const auto found = residuals_.find(name);
  if (found == residuals_.end()) return;
  residuals_.erase(found);
  ++version_;
}

void DeviceMemory::drop_momentum(std::string_view name) {
  const auto found = momentum_.find(name);
  if (found == momentum_.end()) return;
  momentum_.erase(found);
  ++version_;
}

void DeviceMemory::drop_unowned(std::string_view name, Extents owned) {
  const auto layer = second_.find(name);
  if (layer == second_.end()) return;
  const auto dropped = std::erase_if(layer->second, [&](const auto& range) {
    return !std::ranges::binary_search(owned, range.first);
  });
  if (layer->second.empty()) second_.erase(layer);
  if (dropped > 0) ++version_;
}

void DeviceMemory::take(ErrorFeedback& feedback, MomentumCorrection& momentum,
                        SecondResidual& second, WarmStarts& warm_starts) {
  residuals_.clear();
  momentum_.clear();
  second_.clear();
  starts_.clear();
  ++version_;
  for (const auto& [name, values] : feedback.state()) {
    residuals_.emplace(name, device_copy(values, device_));
  }
  for (const auto& [name, ranges] : second.state()) {
    for (const auto& range : ranges) {
      second_[name][{range.begin, range.numel()}] = device_copy(range.values, device_);
    }
  }
  for (const auto& [name, layer] : momentum.state()) {
    momentum_[name] = {
        device_copy(layer.velocity, device_), device_copy(layer.residual, device_), {}};
  }
  for (const auto& [name, start] : warm_starts) {
    starts_[name] = {start.cols, device_copy(start.q, device_)};
  }
  warm_starts.clear();
  feedback.load_state({});
  momentum.load_state({});
  second.load_state({});
}

void DeviceMemory::copy_to(ErrorFeedback::State& all_residuals,
                           MomentumCorrection::State& all_momentum,
                           SecondResidual::State& all_second, WarmStarts& all_warm_starts) const {
  for (const auto& [name, residual] : residuals_) all_residuals[name] = host_copy(residual);
  for (const auto& [name, layer] : momentum_) {
    MomentumCorrection::Layer host{host_copy(layer.velocity), host_copy(layer.residual)};
    if (std::ranges::all_of(host.residual, is_nothing)) continue;
    all_momentum[name] = std::move(host);
  }
  for (const auto& [name, ranges] : second_) {
    for (const auto& [extent, values] : ranges) {
      std::vector<float> host = host_copy(values);
      if (std::ranges::all_of(host, is_nothing)) continue;
      all_second[name].push_back({extent.begin, std::move(host)});
    }
  }
  for (const auto& [name, start] : starts_) {
    std::vector<float> q = host_copy(start.q);
    const auto cols = static_cast<std::ptrdiff_t>(start.cols);
    while (!q.empty() && std::all_of(q.end() - cols, q.end(), is_nothing)) {
      q.resize(q.size() - static_cast<std::size_t>(cols));
    }
    if (!q.empty()) all_warm_starts[name] = {start.cols, std::move(q)};
  }
}

DeviceMemory DeviceMemory::copy() const {
  DeviceMemory copied(device_);
  for (const auto& [name, residual] : residuals_) copied.residuals_.emplace(name, residual.clone());
  for (const auto& [name, layer] : momentum_) {
    copied.momentum_[name] = {layer.velocity.clone(), layer.residual.clone(), {}};
  }
  for (const auto& [name, ranges] : second_) {
    for (const auto& [extent, values] : ranges) copied.second_[name][extent] = values.clone();
  }
  for (const auto& [name, start] : starts_) copied.starts_[name] = {start.cols, start.q.clone()};
  return copied;
}

bool DeviceMemory::carries(std::string_view name) const {
  return residuals_.contains(name) || momentum_.contains(name) || second_.contains(name);
}

std::size_t DeviceMemory::residual_bytes() const {
  std::size_t bytes = 0;
  for (const auto& [name, residual] : residuals_) bytes += residual.nbytes();
  return bytes;
}

std::size_t DeviceMemory::momentum_bytes() const {
  std::size_t bytes = 0;
  for (const auto& [name, layer] : momentum_) {
    bytes += layer.velocity.nbytes() + layer.residual.nbytes();
    if (layer.next.defined()) bytes += layer.next.nbytes();
  }
  return bytes;
}

std::size_t DeviceMemory::second_bytes() const {
  std::size_t bytes = 0;
  for (const auto& [name, ranges] : second_) {
    for (const auto& [extent, values] : ranges) bytes += values.nbytes();
  }
  return bytes;
}

std::size_t DeviceMemory::warm_start_bytes() const {
  std::size_t bytes = 0;
  for (const auto& [name, start] : starts_) bytes += start.q.nbytes();
  return bytes;
}

}  // namespace thinwire::comm
