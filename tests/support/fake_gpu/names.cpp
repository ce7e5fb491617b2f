#include "thinwire/tests/support/fake_gpu/names.h"

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include "thinwire/common/text.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/memory.h"

namespace thinwire::fake_gpu {
namespace {

struct Named {
  std::uintptr_t end = 0;
  std::string name;
};

struct Names {
  std::mutex mutex;
  std::map<std::uintptr_t, Named> memory;  // by first address; later names inside of earlier ones
  std::map<std::size_t, std::string> streams;
};

Names& names() {
  static auto* all = new Names;
  return *all;
}

}  // namespace

void rename_memory(const void* begin, std::size_t bytes, std::string name) {
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  Names& all = names();
  const std::lock_guard lock(all.mutex);
  all.memory.erase(all.memory.lower_bound(first), all.memory.lower_bound(first + bytes));
  all.memory[first] = {first + bytes, std::move(name)};
}

void name_memory(const void* data, std::size_t bytes, std::string name) {
  rename_memory(data, bytes, "'" + std::move(name) + "'");
}

MemoryName name_of_memory(const void* address) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  Names& all = names();
  {
    const std::lock_guard lock(all.mutex);
    auto after = all.memory.upper_bound(at);
    if (after != all.memory.begin()) {
      const auto& [begin, named] = *std::prev(after);
      // What lies behind the end is told by the tensor before it.
      if (at < named.end + 512) return {named.name, begin};
    }
  }
  if (const auto device = device_allocation_of(address))
    return {concat("an allocation of ", device->bytes, " bytes of device ", device_of(address)),
            device->begin};
  if (const auto pinned = pinned_allocation_of(address))
    return {concat("pinned memory of ", pinned->bytes, " bytes"), pinned->begin};
  return {is_device(address) ? "memory that was freed or never allocated" : "memory of the host"};
}

std::string place_in(const MemoryName& name, std::uintptr_t address) {
  if (name.begin == 0) return {};
  return concat(" at byte ", address - name.begin);
}

std::string describe_stream(std::size_t stream) {
  Names& all = names();
  const std::lock_guard lock(all.mutex);
  const auto found = all.streams.find(stream);
  return found == all.streams.end() ? concat("stream ", stream) : concat("stream ", found->second);
}

void name_stream_number(std::size_t stream, std::string name) {
  Names& all = names();
  const std::lock_guard lock(all.mutex);
  all.streams[stream] = std::move(name);
}

}  // namespace thinwire::fake_gpu
