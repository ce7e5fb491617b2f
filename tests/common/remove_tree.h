// Removes a folder and what is in it; of links the links.
#pragma once

#include <filesystem>

namespace thinwire {

// Not std::filesystem::remove_all(): LibTorch's wheel exports one of another standard library,
// which crashes.
inline void remove_tree(const std::filesystem::path& path) {
  if (std::filesystem::is_directory(std::filesystem::symlink_status(path))) {
    for (const auto& entry : std::filesystem::directory_iterator(path)) remove_tree(entry.path());
  }
  std::filesystem::remove(path);
}

}  // namespace thinwire
