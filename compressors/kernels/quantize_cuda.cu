// The quantise kernels on CUDA: quantize_block.h run by CUDA's threads. Compiled without fused
// multiply-adds, so that the device rounds as the CPU does. Never run on a GPU so far: the body is
// tested on host threads, this file is compiled and loaded; see docs/gpu.md.
#include <cuda_runtime_api.h>

#include "thinwire/compressors/kernels/cuda_abi.h"
#include "thinwire/compressors/kernels/cuda_block.h"
#include "thinwire/compressors/kernels/quantize_block.h"

namespace thinwire::kernels {
namespace {

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

// A block for every bucket, as wide as a bucket of bytes has words: 32 threads at least, a warp.
template <typename Task>
std::int32_t launch(void (*kernel)(Task), const Task& task, void* stream) {
  std::uint32_t threads = 32;
  while (threads < kMaxBlockThreads && threads * 4 < task.shape.bucket) threads *= 2;
  return launch_blocks(kernel, task, bucket_count(task.shape), threads, stream);
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
