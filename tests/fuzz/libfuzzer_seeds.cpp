// Gives libFuzzer the seeds of a target: written once to the folder in THINWIRE_FUZZ_SEEDS.
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "thinwire/tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  const char* folder = std::getenv("THINWIRE_FUZZ_SEEDS");
  if (folder == nullptr) return 0;
  int number = 0;
  for (const auto& input : thinwire::fuzz::seeds()) {
    std::ofstream out(std::filesystem::path(folder) / ("seed-" + std::to_string(number++)),
                      std::ios::binary);
    out.write(reinterpret_cast<const char*>(input.data()),
              static_cast<std::streamsize>(input.size()));
  }
  return 0;
}
