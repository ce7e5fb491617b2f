#include "thinwire/comm/backend/part/part.h"

#include <dlfcn.h>

#include <filesystem>
#include <string_view>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// Lies in the library.
constexpr char kHere = 0;

std::unique_ptr<DynamicLibrary> load_part(const Part::Name& name, const std::string& path) {
  try {
    return std::make_unique<DynamicLibrary>(std::vector<std::string>{path});
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(concat("thinwire's part for ", name.title, " cannot be loaded (",
                                 error.what(), "): ", name.install));
  }
}

}  // namespace

const void* Part::table() {
  if (name_.inside != nullptr) return name_.inside();
  const std::lock_guard lock(mutex_);
  if (table_ != nullptr) return table_;
  const std::string path = beside_library_of(&kHere, name_.file);
  check(std::filesystem::exists(path), "this build of thinwire has no ", name_.title, ": ",
        name_.build);
  auto library = load_part(name_, path);
  const auto get = reinterpret_cast<const void* (*)()>(library->find(name_.function));
  const void* const table = get == nullptr ? nullptr : get();
  const std::string_view version =
      table == nullptr ? "another version" : *static_cast<const char* const*>(table);
  check(version == kPartVersion, path, " is a part of thinwire ", version, ", this library is ",
        kPartVersion, ": install both from one build");
  library_ = std::move(library);
  table_ = table;
  return table_;
}

void* Part::find(const char* function) {
  if (name_.inside != nullptr) return dlsym(RTLD_DEFAULT, function);
  try {
    table();
  } catch (const InvalidArgument&) {
    return nullptr;
  }
  return library_->find(function);
}

}  // namespace thinwire::comm
