// Memory for messages and scratch, taken piece by piece and given back all at once.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace thinwire::comm {

// What one bucket needs while it is on its way is taken from one block, which the next bucket takes
// over: memory is that of the largest bucket, however many there are. Nothing is initialised, so
// that room for a worst case which does not occur costs no pages.
//
// Not thread-safe. What bytes(), floats() and tensor() give is valid until reset(); a tensor keeps
// its block alive beyond that, for a backend that still writes to it after a failure.
class Arena {
 public:
  // Each begins at a multiple of 64 bytes.
  std::span<std::byte> bytes(std::size_t count);
  std::span<float> floats(std::size_t count);
  at::Tensor tensor(std::size_t bytes);

  void reset();

  // Bytes held, in use or not.
  std::size_t size() const;

 private:
  struct Place {
    at::Tensor block;
    std::size_t offset = 0;
  };
  Place take(std::size_t count);

  // One block, and more of them while a need is larger than any before it.
  std::vector<at::Tensor> blocks_;
  std::size_t used_ = 0;         // of the last block
  std::size_t used_before_ = 0;  // of the blocks before it
  std::size_t next_block_ = 0;   // least size of the block to come
  std::size_t peak_ = 0;         // since the size was last looked at
  int resets_ = 0;
};

}  // namespace thinwire::comm
