#include "thinwire/tests/support/fake_gpu/nccl/pipes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

namespace thinwire::fake_gpu {

std::size_t Pipe::write(const std::byte* from, std::size_t bytes) {
  const std::uint64_t at = written_;
  const std::size_t room = kBytes - (at - read_);
  const std::size_t count = std::min({bytes, room, kBytes - at % kBytes});
  std::memcpy(data_ + at % kBytes, from, count);
  written_ = at + count;
  return count;
}

std::size_t Pipe::read(std::byte* to, std::size_t bytes) {
  const std::uint64_t at = read_;
  const std::size_t there = written_ - at;
  const std::size_t count = std::min({bytes, there, kBytes - at % kBytes});
  std::memcpy(to, data_ + at % kBytes, count);
  read_ = at + count;
  return count;
}

SharedPipes* open_pipes(const std::string& name, int rank, int size) {
  const int file = shm_open(name.c_str(), O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, sizeof(SharedPipes)) != 0) return nullptr;
  void* memory =
      mmap(nullptr, sizeof(SharedPipes), PROT_READ | PROT_WRITE, MAP_SHARED, file, /*offset=*/0);
  close(file);
  if (memory == MAP_FAILED) return nullptr;
  // A new file is zero, which is what an empty pipe is.
  auto* shared = static_cast<SharedPipes*>(memory);
  ++shared->joined;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (shared->joined < size && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  if (rank == 0) shm_unlink(name.c_str());
  return shared->joined >= size ? shared : nullptr;
}

}  // namespace thinwire::fake_gpu
