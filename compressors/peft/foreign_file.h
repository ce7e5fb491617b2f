// Files that people take for safetensors files.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace thinwire::peft {

// What the beginning of a file says it is, for a message ("an HTML page, ..."), with what to do
// about it; empty where it is nothing that is known. Never says so of a safetensors file.
std::string_view foreign_kind(std::span<const std::byte> content);

}  // namespace thinwire::peft
