#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace thinwire {

// The upper median: the element at place size / 2 of the sorted values. 0 of no values.
inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace thinwire
