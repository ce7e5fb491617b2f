// A block of CUDA's threads as the context of kernels' bodies (block.h), and the launch of kernels
// whose blocks share any number of parts. For *_cuda.cu alone, which include CUDA before.
#pragma once

#include "thinwire/compressors/kernels/block.h"

#define THINWIRE_CUDA_EXPORT __attribute__((visibility("default")))

namespace thinwire::kernels {

class CudaBlock {
 public:
  __device__ std::uint32_t thread() const { return threadIdx.x; }
  __device__ std::uint32_t size() const { return blockDim.x; }
  __device__ void sync() { __syncthreads(); }
  // What the 32 threads of this one's warp give, which must all come here.
  __device__ std::uint32_t ballot(bool mine) { return __ballot_sync(0xFFFFFFFFu, mine); }
  __device__ void add(std::uint32_t* counter, std::uint32_t n) { atomicAdd(counter, n); }
  __device__ void add(std::uint64_t* counter, std::uint64_t n) {
    static_assert(sizeof(unsigned long long) == sizeof n);
    atomicAdd(reinterpret_cast<unsigned long long*>(counter), n);
  }
};

// A block for every part up to the number of blocks that keeps any GPU busy many times over; beyond
// that, blocks take further parts. Returns a cudaError_t.
template <typename Task>
std::int32_t launch_blocks(void (*kernel)(Task), const Task& task, std::uint64_t parts,
                           std::uint32_t threads, void* stream) {
  constexpr std::uint64_t kMostBlocks = 1 << 16;
  if (parts == 0) return cudaSuccess;
  const auto blocks = static_cast<std::uint32_t>(parts < kMostBlocks ? parts : kMostBlocks);
  Task copy = task;
  void* arguments[] = {&copy};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads),
                          arguments, 0, static_cast<cudaStream_t>(stream));
}

}  // namespace thinwire::kernels
