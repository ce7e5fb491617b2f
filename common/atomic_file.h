// A file that appears under its name only when it is complete.
#pragma once

#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string_view>

namespace thinwire {

// Writes to a temporary file in the same folder and renames it in commit(); without commit() the
// temporary file is removed and whatever had the name stays. Not thread-safe.
class AtomicFile {
 public:
  // Throws FileError where the target exists and `overwrite` is false, where it is anything but a
  // regular file (a rename would put one in the place of a device, a pipe or a folder), or where
  // the folder cannot be written.
  AtomicFile(std::filesystem::path target, bool overwrite);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Throws what the constructor would throw for the target, before long work.
  static void check_target(const std::filesystem::path& target, bool overwrite);

  // Appends; throws FileError where the disk refuses.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Flushes to the disk and takes the name.
  void commit();

 private:
  [[noreturn]] void fail(std::string_view action) const;

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  bool overwrite_;
  std::FILE* file_ = nullptr;
};

}  // namespace thinwire
