#include "thinwire/comm/backend/torch_version.h"

#include <cstdint>

#include "thinwire/common/error.h"

// Exported by every libtorch since 2.7; declared here because its own header is a large one.
extern "C" std::uint64_t aoti_torch_abi_version();

namespace thinwire::comm {
namespace {

// "2.11.0" -> "2.11"
std::string minor_of(const std::string& version) {
  return version.substr(0, version.find('.', version.find('.') + 1));
}

}  // namespace

std::string compiled_torch_version() {
  return THINWIRE_TORCH_VERSION;
}

std::string loaded_torch_version() {
  // One byte each of major, minor and patch from the top; TORCH_ABI_VERSION of torch's version.h.
  const std::uint64_t version = aoti_torch_abi_version();
  // Not by a stream: the text is compared, and a locale may group digits.
  return std::to_string(version >> 56) + "." + std::to_string((version >> 48) & 0xFF) + "." +
         std::to_string((version >> 40) & 0xFF);
}

void check_torch_version() {
  check(minor_of(loaded_torch_version()) == minor_of(compiled_torch_version()), "thinwire ",
        THINWIRE_VERSION, " was built for torch ", compiled_torch_version(), " and torch ",
        loaded_torch_version(), " is loaded; rebuild thinwire against it");
}

}  // namespace thinwire::comm
