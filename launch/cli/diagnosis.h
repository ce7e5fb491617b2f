// What `thinwire doctor` reports, as data.
#pragma once

#include <string>
#include <vector>

#include "thinwire/common/env.h"

namespace thinwire::launch {

struct Diagnosis {
  // A library that thinwire stands on: the version it was compiled against and the one in this
  // process; empty where the build has none, or none is loaded.
  struct Library {
    std::string name, built, loaded;
  };
  struct Backend {
    std::string name;
    bool usable;
    std::string reason;  // why not, and what to do; or what it needs to be usable
  };

  std::string version;
  std::vector<Library> libraries;  // torch, mpi, nccl, cuda
  std::string cuda_driver;         // the CUDA version that the driver supports; empty: no driver
  std::vector<Backend> backends;   // nccl, mpi, gloo
  std::string simd_target;
  std::vector<std::string> simd_targets;  // that this processor runs, best first
  bool crc32c_hardware = false;
  std::vector<Env::Variable> variables;
  std::vector<std::string> unknown_variables;
  // The launcher of this process: rank and size, or why its variables make no sense.
  std::string launcher;
  int rank = 0;
  int size = 1;
  // Everything that will fail or surprise, one line each.
  std::vector<std::string> warnings;
};

// Looks at this process, its libraries and its environment. Never throws for what it finds, starts
// nothing, joins nothing. Thread-safe.
Diagnosis diagnose();

}  // namespace thinwire::launch
