// The quantise kernels on CUDA: quantize_block.h run by CUDA's threads. Compiled without fused
// multiply-adds, so that the device rounds as the CPU does. Never run on a GPU so far: the body is
// tested on host threads, this file is compiled and loaded; see docs/gpu.md.
#include <cuda_runtime_api.h>

#include "thinwire/compressors/kernels/cuda_abi.h"
#include "thinwire/compressors/kernels/quantize_block.h"

#define THINWIRE_CUDA_EXPORT __attribute__((visibility("default")))

namespace thinwire::kernels {
namespace {

class CudaBlock {
 public:
  __device__ std::uint32_t thread() const { return threadIdx.x; }
  __device__ std::uint32_t size() const { return blockDim.x; }
  __device__ void sync() { __syncthreads(); }
};

template <DType kType>
__global__ void __launch_bounds__(kMaxBlockThreads) quantize_kernel(QuantizeTask task) {
  __shared__ QuantizeShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < bucket_count(task.shape); i += gridDim.x) {
    quantize_bucket<kType>(block, shared, task, i);
  }
}

template <DType kType>
__global__ void __launch_bounds__(kMaxBlockThreads) dequantize_kernel(DequantizeTask task) {
  const CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < bucket_count(task.shape); i += gridDim.x) {
    dequantize_bucket<kType>(block, task, i);
  }
}

// A block for every bucket up to the number of blocks that keeps any GPU busy many times over;
// beyond that, blocks take further buckets. Blocks are as wide as a bucket of bytes has words: 32
// threads at least, a warp.
template <typename Task>
std::int32_t launch(void (*kernel)(Task), const Task& task, void* stream) {
  constexpr std::uint64_t kMostBlocks = 1 << 16;
  const std::uint64_t buckets = bucket_count(task.shape);
  if (buckets == 0) return cudaSuccess;
  std::uint32_t threads = 32;
  while (threads < kMaxBlockThreads && threads * 4 < task.shape.bucket) threads *= 2;
  const auto blocks = static_cast<std::uint32_t>(buckets < kMostBlocks ? buckets : kMostBlocks);
  Task copy = task;
  void* arguments[] = {&copy};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads),
                          arguments, 0, static_cast<cudaStream_t>(stream));
}

}  // namespace
}  // namespace thinwire::kernels

using namespace thinwire::kernels;

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_abi() {
  return kCudaAbi;
}

THINWIRE_CUDA_EXPORT const char* thinwire_cuda_error(std::int32_t error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_quantize(const QuantizeTask* task, void* stream) {
  return with_dtype(task->shape.dtype, [&](auto dtype) {
    return launch(quantize_kernel<decltype(dtype)::value>, *task, stream);
  });
}

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_dequantize(const DequantizeTask* task,
                                                           void* stream) {
  return with_dtype(task->shape.dtype, [&](auto dtype) {
    return launch(dequantize_kernel<decltype(dtype)::value>, *task, stream);
  });
}
