// The kernels of a PTX file, by parts of their mangled names.
#pragma once

#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "thinwire/tests/support/ptx/program.h"

namespace thinwire::testing::ptx {

inline std::vector<Kernel> kernels_of_file(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return parse(text.str());
}

inline const Kernel& kernel_of(const std::vector<Kernel>& kernels, const std::string& name) {
  for (const auto& kernel : kernels) {
    if (kernel.name.find(name) != std::string::npos) return kernel;
  }
  throw std::runtime_error("there is no kernel " + name);
}

// The part of its name that tells a template's instance for a value of an enumeration.
inline std::string instance(const std::string& name, const std::string& type, int value) {
  return std::to_string(name.size()) + name + "ILNS_" + std::to_string(type.size()) + type + "E" +
         std::to_string(value);
}

}  // namespace thinwire::testing::ptx
