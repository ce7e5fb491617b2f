// Which SIMD target the kernels run on. Highway compiles every *_cpu.cpp once per target and picks
// the best at run time; all give the same bits.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace thinwire::kernels {

// Targets that were compiled and that this processor runs, best first: "AVX3", "AVX2", "SSE4",
// "SSSE3", "EMU128" on x86.
std::vector<std::string> simd_targets();

// The one in use.
std::string simd_target();

// Uses one target, or the best again for "". Throws InvalidArgument for one that is not in
// simd_targets(). Meant for tests and start-up: not while kernels run on other threads.
void set_simd_target(std::string_view name);

// Applies THINWIRE_SIMD at the first call; make_codec() calls it. Thread-safe. Throws as above.
void apply_simd_environment();

}  // namespace thinwire::kernels
