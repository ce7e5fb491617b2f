// The kernels of averaging in GPU memory: piece_block.h and frame_block.h run by CUDA's threads.
// Compiled without fused multiply-adds, so that the device rounds as the CPU does. Never run on a
// GPU so far, see docs/gpu.md.
#include <cuda_runtime_api.h>

#include "thinwire/compressors/kernels/cuda_abi.h"
#include "thinwire/compressors/kernels/cuda_block.h"
#include "thinwire/compressors/kernels/frame_block.h"
#include "thinwire/compressors/kernels/piece_block.h"

namespace thinwire::kernels {
namespace {

template <DType kType>
__global__ void __launch_bounds__(kMaxBlockThreads) encode_pieces_kernel(EncodeTask task) {
  __shared__ TileShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    encode_tile<kType>(block, shared, task, task.first_tile + i);
  }
}

// For sm_80 ptxas takes fewer registers than it needs unless it is told how many are free.
__global__ void __launch_bounds__(kMaxBlockThreads, 4) reduce_pieces_kernel(ReduceTask task) {
  __shared__ TileShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    reduce_tile(block, shared, task, task.first_tile + i);
  }
}

template <DType kType>
__global__ void __launch_bounds__(kMaxBlockThreads) decode_pieces_kernel(DecodeTask task) {
  const CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    decode_tile<kType>(block, task, task.first_tile + i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) sum_frames_kernel(SumTask task) {
  __shared__ SumShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.segments; i += gridDim.x) {
    sum_segment(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) frames_kernel(FrameTask task) {
  __shared__ FrameShared shared;
  CudaBlock block;
  handle_frames(block, shared, task);
}

template <typename Task>
std::int32_t launch_tiles(void (*kernel)(Task), const Task& task, void* stream) {
  return launch_blocks(kernel, task, task.tiles, task.table.threads, stream);
}

}  // namespace
}  // namespace thinwire::kernels

using namespace thinwire::kernels;

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_encode_pieces(const EncodeTask* task,
                                                              void* stream) {
  return with_dtype(task->dtype, [&](auto dtype) {
    return launch_tiles(encode_pieces_kernel<decltype(dtype)::value>, *task, stream);
  });
}

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_reduce_pieces(const ReduceTask* task,
                                                              void* stream) {
  return launch_tiles(reduce_pieces_kernel, *task, stream);
}

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_decode_pieces(const DecodeTask* task,
                                                              void* stream) {
  return with_dtype(task->dtype, [&](auto dtype) {
    return launch_tiles(decode_pieces_kernel<decltype(dtype)::value>, *task, stream);
  });
}

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_sum_frames(const SumTask* task, void* stream) {
  return launch_blocks(sum_frames_kernel, *task, task->segments, kMaxBlockThreads, stream);
}

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_frames(const FrameTask* task, void* stream) {
  return launch_blocks(frames_kernel, *task, 1, kMaxBlockThreads, stream);
}
