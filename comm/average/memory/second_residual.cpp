#include "thinwire/comm/average/memory/second_residual.h"

#include <algorithm>

namespace thinwire::comm {
namespace {

bool is_owned(const SecondResidual::Range& range, std::span<const SecondResidual::Extent> owned) {
  return std::ranges::find(owned, SecondResidual::Extent{range.begin, range.numel()}) !=
         owned.end();
}

}  // namespace

std::span<const float> SecondResidual::of(std::string_view name, std::int64_t begin,
                                          std::int64_t numel) const {
  const auto layer = ranges_.find(name);
  if (layer == ranges_.end()) return {};
  for (const Range& range : layer->second) {
    if (range.begin == begin && range.numel() == numel) return range.values;
  }
  return {};
}

void SecondResidual::store(std::string_view name, std::int64_t begin,
                           std::span<const float> values) {
  auto layer = ranges_.find(name);
  if (layer == ranges_.end()) layer = ranges_.emplace(name, std::vector<Range>{}).first;
  for (Range& range : layer->second) {
    if (range.begin != begin || range.values.size() != values.size()) continue;
    std::ranges::copy(values, range.values.begin());
    return;
  }
  layer->second.push_back({begin, {values.begin(), values.end()}});
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

}  // namespace thinwire::comm
