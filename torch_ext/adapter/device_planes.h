// An expert's trits in GPU memory, and the weights there that they are put on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/compressors/kernels/planes_task.h"
#include "thinwire/compressors/peft/ternary_planes.h"

namespace thinwire {

// Takes 2.5 bits an element of the planes, and what the elements that change were before. Work is
// queued on the current stream, which has to be the same in all calls, and not waited for; one
// launch whatever the number of weights. Not thread-safe.
class DevicePlanes {
 public:
  // scale * trits from `begin` on are for `weight`: contiguous, float32, float16 or bfloat16.
  struct Change {
    at::Tensor weight;
    float scale = 0;
    std::int64_t begin = 0;
  };

  // Copies the planes to the weights' device, of which there must be at least one, and waits for
  // the copies. Throws InvalidArgument for a weight of 2^32 elements or more, and where there are
  // no kernels (CudaModule).
  DevicePlanes(peft::PlanesView planes, const std::vector<Change>& changes);

  void put_on();
  void take_off();
  // Makes a copy of the weight of changes[index], on which the trits are now, what it was before.
  void take_off(std::size_t index, const at::Tensor& copy) const;

 private:
  void run(kernels::PlanesStage stage, const at::Tensor& table, std::size_t count,
           std::uint64_t tiles) const;

  at::Tensor mask_, sign_, before_;  // 64, 64 and 32 bits a word
  std::vector<at::Tensor> kept_;
  std::vector<kernels::PlanesItem> items_;
  std::uint64_t tiles_ = 0;
  at::Tensor table_;  // items_ in device memory
};

}  // namespace thinwire
