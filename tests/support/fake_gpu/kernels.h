// Kernels that nvcc compiled, executed from their PTX.
#pragma once

#include <cstdint>

namespace thinwire::fake_gpu {

struct Grid {
  std::uint32_t blocks = 1;
  std::uint32_t threads = 1;
};

class Stream;

// As a library does for each of its kernels when it is loaded. `name` is mangled and stays.
void register_kernel(const void* host_function, const char* name);

// Queues the kernel. Its PTX is looked for in the *.ptx files beside the library that registered it
// and found by name: what the tests build needs no list of kernels. False, and a finding, where
// there is none: ATen's own kernels, say.
bool launch_kernel(const void* host_function, const Grid& grid, void* const* arguments,
                   Stream* stream);
// A finding that says that this launch is beyond the emulation.
void refuse_launch(const void* host_function, const char* why);

}  // namespace thinwire::fake_gpu
