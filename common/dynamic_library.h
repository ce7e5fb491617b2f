// Libraries that are loaded while the program runs, so that it starts on machines without them.
#pragma once

#include <string>
#include <vector>

namespace thinwire {

// A loaded library. It stays loaded to the end of the process: threads may be inside, and neither
// CUDA nor MPI survives being unloaded. Copies are the same library. Thread-safe.
class DynamicLibrary {
 public:
  // Loads the first of `files`, as dlopen() takes them, that can be loaded; its names stay its own.
  // Throws InvalidArgument with the system's words on each where none can.
  explicit DynamicLibrary(const std::vector<std::string>& files);

  // The address of `name` in the library or what it needs; null where there is none.
  void* find(const char* name) const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  void* handle_ = nullptr;
};

// The path of `file` in the folder of the library or program that holds `address`; `file` itself
// where the system does not know which that is.
std::string beside_library_of(const void* address, const std::string& file);

}  // namespace thinwire
