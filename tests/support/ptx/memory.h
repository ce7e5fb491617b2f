// The memory of an emulated GPU: what lies where, who may touch it, and who races for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace thinwire::testing::ptx {

// Who touches memory: a thread of a block, between two of its barriers.
struct Actor {
  std::uint32_t block = 0, thread = 0, epoch = 0;
};

// Bytes with a record of the last accesses to each. Two accesses of one byte, one of them a write,
// race where nothing orders them: threads of a block are ordered by its barriers alone, blocks not
// at all. Records are made where bytes are touched, so that a range may be large.
class WatchedBytes {
 public:
  // Whether the byte at an offset holds something before anything is written.
  using IsDefined = std::function<bool(std::size_t at)>;

  explicit WatchedBytes(std::span<std::byte> bytes, IsDefined is_defined = {})
      : bytes_(bytes),
        is_defined_(std::move(is_defined)),
        pages_((bytes.size() + kPage - 1) / kPage) {}

  std::size_t size() const { return bytes_.size(); }
  // Empty, or the fault as words: "race with a write of thread 3".
  std::string read(std::size_t at, std::size_t count, const Actor& actor, std::byte* into);
  std::string write(std::size_t at, std::size_t count, const Actor& actor, const std::byte* from);
  // Adds to an integer of `count` bytes as one operation, which races with plain accesses alone.
  std::string add(std::size_t at, std::size_t count, const Actor& actor, std::uint64_t more,
                  std::uint64_t& before);
  // Says that the bytes hold nothing yet: reading them before a write is a fault.
  void forget_contents();

  // Calls visit(offset, bytes, read, written) for the bytes that were touched, neighbours of one
  // kind together, in order.
  template <typename Visit>
  void for_each_touched(const Visit& visit) const {
    std::size_t begin = 0, end = 0;
    bool read = false, written = false;
    for (std::size_t page = 0; page < pages_.size(); ++page) {
      if (pages_[page].empty()) continue;
      for (std::size_t i = 0; i < pages_[page].size(); ++i) {
        const Record& record = pages_[page][i];
        const std::size_t at = page * kPage + i;
        if (at != end || record.read.any != read || record.written.any != written) {
          if (read || written) visit(begin, end - begin, read, written);
          begin = at;
          read = record.read.any;
          written = record.written.any;
        }
        end = at + 1;
      }
    }
    if (read || written) visit(begin, end - begin, read, written);
  }

 private:
  static constexpr std::size_t kPage = 1024;

  struct Access {
    Actor actor;
    bool any = false;
    bool many = false;     // by several threads of this epoch
    bool atomic = false;   // add()
    bool foreign = false;  // by several blocks
  };
  struct Record {
    Access written, read;
    bool defined = true;
  };
  static bool unordered(const Access& access, const Actor& actor);
  Record& record(std::size_t at);

  std::span<std::byte> bytes_;
  IsDefined is_defined_;                    // empty: all of them are
  std::vector<std::vector<Record>> pages_;  // an empty one was not touched
};

// Global memory: ranges of host memory, at their own addresses or at a device's.
class GlobalMemory {
 public:
  struct Found {
    std::uint64_t begin = 0;  // the address that kernels know
    std::span<std::byte> bytes;
    WatchedBytes::IsDefined is_defined = {};
  };
  // Finds the range of an address when a kernel first touches it.
  using Source = std::function<std::optional<Found>(std::uint64_t address)>;

  GlobalMemory() = default;
  explicit GlobalMemory(Source source) : source_(std::move(source)) {}

  // The bytes that kernels may touch; `defined` as they are, else to be written first.
  void add(void* data, std::size_t bytes, bool defined = true);
  // The range that holds [address, address + count), and the offset in it. Null: none does.
  WatchedBytes* find(std::uint64_t address, std::size_t count, std::size_t& offset);

  // As WatchedBytes' function, with addresses.
  template <typename Visit>
  void for_each_touched(const Visit& visit) const {
    for (const auto& [begin, range] : ranges_) {
      range.for_each_touched(
          [&, first = begin](std::size_t offset, std::size_t bytes, bool read, bool written) {
            visit(first + offset, bytes, read, written);
          });
    }
  }

 private:
  WatchedBytes* known(std::uint64_t address, std::size_t count, std::size_t& offset);

  Source source_;
  std::map<std::uint64_t, WatchedBytes> ranges_;
};

}  // namespace thinwire::testing::ptx
