#include "thinwire/tests/support/fake_gpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "thinwire/tests/support/fake_gpu/settings.h"

namespace thinwire::fake_gpu {
namespace {

constexpr std::size_t kPage = 4096;

std::uintptr_t number(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

[[noreturn]] void stop(const char* what) {
  std::perror(what);
  std::abort();
}

// Allocations by their first address.
class Allocations {
 public:
  void add(std::uintptr_t begin, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    all_[begin] = bytes;
  }
  // Bytes of the allocation that begins there, which is none any more; 0: there was none.
  std::size_t remove(std::uintptr_t begin) {
    const std::lock_guard lock(mutex_);
    const auto found = all_.find(begin);
    if (found == all_.end()) return 0;
    const std::size_t bytes = found->second;
    all_.erase(found);
    return bytes;
  }
  std::optional<Allocation> find(std::uintptr_t address) const {
    const std::lock_guard lock(mutex_);
    auto after = all_.upper_bound(address);
    if (after == all_.begin()) return std::nullopt;
    const auto& [begin, bytes] = *std::prev(after);
    if (address >= begin + bytes) return std::nullopt;
    return Allocation{begin, bytes};
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::uintptr_t, std::size_t> all_;
};

class DeviceMemory {
 public:
  DeviceMemory() {
    const int file = memfd_create("fake_gpu", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, static_cast<off_t>(kDeviceBytes)) != 0)
      stop("fake GPU: memory of a device");
    device_ = map(file);
    shadow_ = map(file);
    close(file);
  }

  bool holds(const void* pointer) const {
    return number(pointer) >= number(device_) && number(pointer) < number(device_) + kDeviceBytes;
  }
  void* shadow(const void* pointer) const { return shadow_ + (number(pointer) - number(device_)); }
  const void* address_of_shadow(const void* shadow) const {
    const std::size_t at = number(shadow) - number(shadow_);
    return at < kDeviceBytes ? device_ + at : nullptr;
  }

  void* allocate(std::size_t bytes) {
    const std::size_t room = room_for(bytes);
    const std::lock_guard lock(mutex_);
    std::size_t at = used_;
    if (const auto free = free_.find(room); free != free_.end()) {
      at = free->second;
      free_.erase(free);
    } else if (used_ + room <= kDeviceBytes) {
      used_ += room;
    } else {
      return nullptr;
    }
    // The page behind it stays closed: what runs over the end stops.
    if (mprotect(shadow_ + at, room - kPage, PROT_READ | PROT_WRITE) != 0)
      stop("fake GPU: opening memory");
    std::memset(shadow_ + at, 0xFF, room - kPage);
    allocations_.add(number(device_ + at), bytes);
    return device_ + at;
  }

  void free(void* pointer) {
    const std::size_t bytes = allocations_.remove(number(pointer));
    if (bytes == 0) stop("fake GPU: free of what is no allocation");
    const std::size_t at = number(pointer) - number(device_), room = room_for(bytes);
    madvise(shadow_ + at, room - kPage, MADV_REMOVE);
    if (mprotect(shadow_ + at, room - kPage, PROT_NONE) != 0) stop("fake GPU: closing memory");
    const std::lock_guard lock(mutex_);
    free_.emplace(room, at);
  }

  std::optional<Allocation> find(const void* pointer) const {
    return allocations_.find(number(pointer));
  }

 private:
  static std::size_t room_for(std::size_t bytes) {
    return (bytes + kPage - 1) / kPage * kPage + kPage;
  }
  static char* map(int file) {
    void* at =
        mmap(nullptr, kDeviceBytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, /*offset=*/0);
    if (at == MAP_FAILED) stop("fake GPU: mapping memory of a device");
    return static_cast<char*>(at);
  }

  char* device_ = nullptr;
  char* shadow_ = nullptr;
  Allocations allocations_;
  std::mutex mutex_;
  std::size_t used_ = 0;
  std::multimap<std::size_t, std::size_t> free_;  // room -> where it begins
};

// None of these is ever destroyed: streams run until the process ends.
std::vector<DeviceMemory>& devices() {
  static auto* all = new std::vector<DeviceMemory>(static_cast<std::size_t>(device_count()));
  return *all;
}

Allocations& pinned() {
  static auto* all = new Allocations;
  return *all;
}

}  // namespace

int device_of(const void* pointer) {
  for (std::size_t d = 0; d < devices().size(); ++d)
    if (devices()[d].holds(pointer)) return static_cast<int>(d);
  return -1;
}

bool is_device(const void* pointer) {
  return device_of(pointer) >= 0;
}

void* allocate_device(std::size_t bytes, int device) {
  return devices()[static_cast<std::size_t>(device)].allocate(bytes);
}

void free_device(void* pointer) {
  const int device = device_of(pointer);
  if (device < 0) stop("fake GPU: free of what is no device memory");
  devices()[static_cast<std::size_t>(device)].free(pointer);
}

void* shadow(const void* pointer) {
  const int device = device_of(pointer);
  if (device < 0) return const_cast<void*>(pointer);
  return devices()[static_cast<std::size_t>(device)].shadow(pointer);
}

const void* address_of_shadow(const void* shadow) {
  for (const DeviceMemory& device : devices())
    if (const void* address = device.address_of_shadow(shadow)) return address;
  return nullptr;
}

std::optional<Allocation> device_allocation_of(const void* pointer) {
  const int device = device_of(pointer);
  if (device < 0) return std::nullopt;
  return devices()[static_cast<std::size_t>(device)].find(pointer);
}

void* allocate_pinned(std::size_t bytes) {
  void* pointer = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage + kPage);
  if (pointer == nullptr) return nullptr;
  std::memset(pointer, 0xFF, bytes);
  pinned().add(number(pointer), bytes);
  return pointer;
}

void free_pinned(void* pointer) {
  pinned().remove(number(pointer));
  std::free(pointer);
}

std::optional<Allocation> pinned_allocation_of(const void* pointer) {
  return pinned().find(number(pointer));
}

}  // namespace thinwire::fake_gpu
