// Who touched which bytes, and whether an order was there: happens-before, not luck.
//
// Streams tell every access of a task when the task runs. Two accesses of one byte, one of them a
// write, that no queue, event or wait of the host orders are a race, though the numbers came out
// right. Beside that it knows which bytes were written since they were given to a tensor, and which
// belong to none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "thinwire/tests/support/fake_gpu/names.h"
#include "thinwire/tests/support/fake_gpu/order.h"

namespace thinwire::fake_gpu {

struct Access {
  const void* begin = nullptr;
  std::size_t bytes = 0;
  bool write = false;
  MemoryName name = {};  // enqueue() fills it in
};
inline Access named(Access access) {
  access.name = name_of_memory(access.begin);
  return access;
}

enum class Contents : std::uint8_t {
  kWritten,
  kUnwritten,  // since the bytes were given away
  kFreed,
  kNobodys,  // between tensors: what an allocator adds to reach its granularity
};

void note(const std::shared_ptr<const Task>& task, const Access& access);
// As note() of a write, which leaves contents of this kind: what an allocator does.
void note_contents(const std::shared_ptr<const Task>& task, const Access& access,
                   Contents contents);
bool is_written(std::uintptr_t address);
// What happened to these bytes so far; they are kUnwritten, or of no interest (host memory).
void forget(const void* begin, std::size_t bytes, Contents contents);

// A sentence for findings(), once however often it is told.
void add_finding(const std::string& text);
std::vector<std::string> take_findings();

}  // namespace thinwire::fake_gpu
