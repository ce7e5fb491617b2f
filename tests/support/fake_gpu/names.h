// Names for memory and streams, for the sentences of findings().
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace thinwire::fake_gpu {

// The bytes have no name of their own any more: they are given to another tensor.
void rename_memory(const void* begin, std::size_t bytes, std::string name);

// What memory is called: a name, else the allocation that it lies in. Asked for when work is
// queued, since the memory may be another tensor's when it runs.
struct MemoryName {
  std::string text;
  std::uintptr_t begin = 0;  // of what has the name; 0: nothing that has bytes
};
MemoryName name_of_memory(const void* address);

// " at byte 12", from the begin of what has the name.
std::string place_in(const MemoryName& name, std::uintptr_t address);
inline std::string describe_memory(const void* address) {
  const MemoryName name = name_of_memory(address);
  return name.text + place_in(name, reinterpret_cast<std::uintptr_t>(address));
}

std::string describe_stream(std::size_t stream);
void name_stream_number(std::size_t stream, std::string name);

}  // namespace thinwire::fake_gpu
