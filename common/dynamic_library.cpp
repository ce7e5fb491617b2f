#include "thinwire/common/dynamic_library.h"

#include <dlfcn.h>

#include <filesystem>

#include "thinwire/common/error.h"

namespace thinwire {

DynamicLibrary::DynamicLibrary(const std::vector<std::string>& files) {
  std::string failures;
  for (const std::string& file : files) {
    handle_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ != nullptr) {
      path_ = file;
      return;
    }
    failures += concat(failures.empty() ? "" : "; ", dlerror());
  }
  throw InvalidArgument(failures);
}

void* DynamicLibrary::find(const char* name) const {
  return dlsym(handle_, name);
}

std::string beside_library_of(const void* address, const std::string& file) {
  Dl_info library{};
  if (dladdr(address, &library) == 0 || library.dli_fname == nullptr) return file;
  return std::filesystem::path(library.dli_fname).replace_filename(file);
}

}  // namespace thinwire
