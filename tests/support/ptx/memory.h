// The memory of an emulated GPU: what lies where, who may touch it, and who races for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace thinwire::testing::ptx {

// Who touches memory: a thread of a block, between two of its barriers.
struct Actor {
  std::uint32_t block = 0, thread = 0, epoch = 0;
};

// Bytes with a record of the last accesses to each. Two accesses of one byte, one of them a write,
// race where nothing orders them: threads of a block are ordered by its barriers alone, blocks not
// at all.
class WatchedBytes {
 public:
  explicit WatchedBytes(std::span<std::byte> bytes) : bytes_(bytes), records_(bytes.size()) {}

  std::size_t size() const { return bytes_.size(); }
  // Empty, or the fault as words: "race with a write of thread 3".
  std::string read(std::size_t at, std::size_t count, const Actor& actor, std::byte* into);
  std::string write(std::size_t at, std::size_t count, const Actor& actor, const std::byte* from);
  // Says that the bytes hold nothing yet: reading them before a write is a fault.
  void forget_contents();

 private:
  struct Access {
    Actor actor;
    bool any = false;
    bool many = false;  // by several threads of this epoch
  };
  struct Record {
    Access written, read;
    bool defined = true;
  };
  static bool unordered(const Access& access, const Actor& actor);
  std::span<std::byte> bytes_;
  std::vector<Record> records_;
};

// Global memory: ranges of host memory at their own addresses.
class GlobalMemory {
 public:
  // The bytes that kernels may touch; `defined` as they are, else to be written first.
  void add(void* data, std::size_t bytes, bool defined = true);
  // The range that holds [address, address + count), and the offset in it. Null: none does.
  WatchedBytes* find(std::uint64_t address, std::size_t count, std::size_t& offset);

 private:
  std::map<std::uint64_t, WatchedBytes> ranges_;
};

}  // namespace thinwire::testing::ptx
