#pragma once

#include <dlfcn.h>

#include <vector>

namespace thinwire::testing {

// The name of NVIDIA's driver where the host lacks it, else nothing.
inline std::vector<const char*> missing_driver() {
  constexpr const char* kDriver = "libcuda.so.1";
  if (dlopen(kDriver, RTLD_NOW) != nullptr) return {};
  return {kDriver};
}

}  // namespace thinwire::testing
