// Memory that a thread keeps from call to call.
#pragma once

#include <cstddef>
#include <vector>

namespace thinwire::spectral {

// At least so many elements, of which nothing is known.
inline float* room(std::vector<float>& buffer, std::size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

}  // namespace thinwire::spectral
