// Names for memory and streams, for the sentences of findings().
#pragma once

#include <cstddef>
#include <string>

namespace thinwire::fake_gpu {

// The bytes have no name of their own any more: they are given to another tensor.
void rename_memory(const void* begin, std::size_t bytes, std::string name);

// Words for memory: its name, else the allocation that it lies in; and where in it an address is.
struct MemoryWords {
  std::string name, place;
};
MemoryWords words_for_memory(const void* address);
inline std::string describe_memory(const void* address) {
  const auto [name, place] = words_for_memory(address);
  return name + place;
}
std::string describe_stream(std::size_t stream);
void name_stream_number(std::size_t stream, std::string name);

}  // namespace thinwire::fake_gpu
