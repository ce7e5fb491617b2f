// Device memory and pinned host memory.
//
// A device's memory is mapped twice: at addresses that programs know, which nobody may touch, and
// at others, its shadow, which only the work of a stream uses. So a host that follows a device
// address stops at once, and freed or foreign memory stops a task.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace thinwire::fake_gpu {

// Null where the device has no such room. Freshly allocated bytes are all ones: NaN.
void* allocate_device(std::size_t bytes, int device);
// The device must be idle.
void free_device(void* pointer);
bool is_device(const void* pointer);
int device_of(const void* pointer);  // -1: not of a device

// The memory behind an address of a device; an address of the host as it is.
void* shadow(const void* pointer);
// The address of a device that a shadow belongs to; null for what is none.
const void* address_of_shadow(const void* shadow);

void* allocate_pinned(std::size_t bytes);
void free_pinned(void* pointer);

// What one call allocated.
struct Allocation {
  std::uintptr_t begin = 0;
  std::size_t bytes = 0;
};
// The one that an address lies in, on a device or pinned.
std::optional<Allocation> device_allocation_of(const void* pointer);
std::optional<Allocation> pinned_allocation_of(const void* pointer);
inline bool is_pinned(const void* pointer) {
  return pinned_allocation_of(pointer).has_value();
}

}  // namespace thinwire::fake_gpu
