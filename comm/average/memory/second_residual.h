// What encoding a mean loses, kept by the rank that encoded it.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace thinwire::comm {

// In scatter_reduce the owner of a slice encodes the mean once more, and no rank's residual knows
// of that loss. The owner adds it to the next mean of the same elements, as DoubleSqueeze does
// (Tang et al., ICML 2019), so that updates and residuals together hold every gradient.
//
// Keyed by the parameter's name and the range of elements, in order of these. When another cut
// makes another rank the owner, a range is an orphan: its holder adds it, times the number of
// ranks, to its own gradient, whose mean then holds it once. Not thread-safe: the communication
// thread owns it.
class SecondResidual {
 public:
  struct Range {
    std::int64_t begin = 0;
    std::vector<float> values;
    std::int64_t numel() const { return static_cast<std::int64_t>(values.size()); }
    bool operator==(const Range&) const = default;
  };
  using State = std::map<std::string, std::vector<Range>, std::less<>>;

  // The residual of exactly these elements, empty if there is none.
  std::span<const float> of(std::string_view name, std::int64_t begin, std::int64_t numel) const;

  // Replaces the residual of the elements from `begin` on.
  void store(std::string_view name, std::int64_t begin, std::span<const float> values);

  // The ranges of a layer that are none of `owned`, which are in order.
  struct Extent {
    std::int64_t begin = 0, numel = 0;
    auto operator<=>(const Extent&) const = default;
  };
  std::vector<const Range*> unowned(std::string_view name, std::span<const Extent> owned) const;
  void drop_unowned(std::string_view name, std::span<const Extent> owned);

  const State& state() const { return ranges_; }
  void load_state(State state);
  // Bytes held.
  std::size_t bytes() const;

 private:
  State ranges_;
};

// values[i] += factor · what the ranges hold of element i.
void add_ranges(std::span<const SecondResidual::Range* const> ranges, float factor,
                std::span<float> values);

}  // namespace thinwire::comm
