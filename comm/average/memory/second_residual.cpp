#include "thinwire/comm/average/memory/second_residual.h"

#include <algorithm>

#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {
namespace {

using Extent = SecondResidual::Extent;

Extent extent_of(const SecondResidual::Range& range) {
  return {range.begin, range.numel()};
}

bool is_owned(const SecondResidual::Range& range, std::span<const Extent> owned) {
  return std::ranges::binary_search(owned, extent_of(range));
}

}  // namespace

std::span<const float> SecondResidual::of(std::string_view name, std::int64_t begin,
                                          std::int64_t numel) const {
  const auto layer = ranges_.find(name);
  if (layer == ranges_.end()) return {};
  const Extent extent{begin, numel};
  const auto found = std::ranges::lower_bound(layer->second, extent, {}, extent_of);
  if (found == layer->second.end() || extent_of(*found) != extent) return {};
  return found->values;
}

void SecondResidual::store(std::string_view name, std::int64_t begin,
                           std::span<const float> values) {
  auto layer = ranges_.find(name);
  if (layer == ranges_.end()) layer = ranges_.emplace(name, std::vector<Range>{}).first;
  const Extent extent{begin, static_cast<std::int64_t>(values.size())};
  const auto found = std::ranges::lower_bound(layer->second, extent, {}, extent_of);
  if (found != layer->second.end() && extent_of(*found) == extent) {
    kernels::copy_past_cache(values, found->values.data());
  } else {
    layer->second.insert(found, {begin, {values.begin(), values.end()}});
  }
}

void SecondResidual::load_state(State state) {
  ranges_ = std::move(state);
  for (auto& [name, ranges] : ranges_) std::ranges::sort(ranges, {}, extent_of);
}

std::size_t SecondResidual::bytes() const {
  std::size_t bytes = 0;
  for (const auto& [name, ranges] : ranges_) {
    bytes += ranges.capacity() * sizeof(Range);
    for (const Range& range : ranges) bytes += range.values.capacity() * sizeof(float);
  }
  return bytes;
}

std::vector<const SecondResidual::Range*> SecondResidual::unowned(
    std::string_view name, std::span<const Extent> owned) const {
  std::vector<const Range*> found;
  const auto layer = ranges_.find(name);
  if (layer == ranges_.end()) return found;
  for (const Range& range : layer->second) {
    if (!is_owned(range, owned)) found.push_back(&range);
  }
  return found;
}

void SecondResidual::drop_unowned(std::string_view name, std::span<const Extent> owned) {
  const auto layer = ranges_.find(name);
  if (layer == ranges_.end()) return;
  std::erase_if(layer->second, [&](const Range& range) { return !is_owned(range, owned); });
  if (layer->second.empty()) ranges_.erase(layer);
}

void add_ranges(std::span<const SecondResidual::Range* const> ranges, float factor,
                std::span<float> values) {
  for (const SecondResidual::Range* range : ranges) {
    const auto part = values.subspan(static_cast<std::size_t>(range->begin), range->values.size());
    kernels::add_scaled(part.data(), range->values.data(), factor, part);
  }
}

}  // namespace thinwire::comm
