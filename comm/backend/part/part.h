// Parts of the library in files of their own, which are loaded when they are first asked for: so
// the library starts on machines that lack what a part needs, MPI or CUDA.
//
// Note [Parts]
//
// A part exports one function, which gives a table of functions that begins with the version of
// thinwire and of the torch that the part was built for (kPartVersion). Part and library are built
// together and lie in one folder. A static library has no parts; it contains what they hold.
#pragma once

#include <memory>
#include <mutex>

#include "thinwire/common/dynamic_library.h"

namespace thinwire::comm {

inline constexpr const char* kPartVersion = THINWIRE_VERSION " for torch " THINWIRE_TORCH_VERSION;

// Thread-safe.
class Part {
 public:
  struct Name {
    const char* title;                  // what it makes possible: "MPI"
    const char* file;                   // beside libthinwire
    const char* function;               // that gives the table
    const char* build;                  // what to do where the installation has no such file
    const char* install;                // what to do where the file cannot be loaded
    const void* (*inside)() = nullptr;  // gives the table where the library contains the part
  };

  explicit Part(const Name& name) : name_(name) {}

  // The part's table, loaded by the first call that can. Throws InvalidArgument, saying what to do,
  // where the part is not there, lacks what it needs, or belongs to another version.
  const void* table();
  // A function of the part or of what it needs; null where it or the part cannot be had.
  void* find(const char* function);

 private:
  Name name_;
  std::mutex mutex_;
  std::unique_ptr<DynamicLibrary> library_;
  const void* table_ = nullptr;
};

}  // namespace thinwire::comm
