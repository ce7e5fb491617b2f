// Memory that the ranks of a fake NCCL communicator share: a pipe for each pair of them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace thinwire::fake_gpu {

inline constexpr int kMostRanks = 8;

// Bytes from one rank to another, in order.
class Pipe {
 public:
  // As many of the bytes as have room, or as are there. Neither waits.
  std::size_t write(const std::byte* from, std::size_t bytes);
  std::size_t read(std::byte* to, std::size_t bytes);

 private:
  static constexpr std::size_t kBytes = 128 << 10;
  std::atomic<std::uint64_t> written_, read_;
  std::byte data_[kBytes];
};

struct SharedPipes {
  std::atomic<int> joined;
  Pipe pipes[kMostRanks][kMostRanks];  // [from][to]
};

// Opens what has this name, with all ranks together. Null where not all came within a minute.
SharedPipes* open_pipes(const std::string& name, int rank, int size);

}  // namespace thinwire::fake_gpu
