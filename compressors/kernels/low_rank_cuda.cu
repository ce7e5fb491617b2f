// The kernels of averaging by low-rank factors in GPU memory: low_rank_block.h run by CUDA's
// threads. Never run on a GPU so far, see docs/gpu.md.
#include <cuda_runtime_api.h>

#include "thinwire/compressors/kernels/cuda_abi.h"
#include "thinwire/compressors/kernels/cuda_block.h"
#include "thinwire/compressors/kernels/low_rank_block.h"

namespace thinwire::kernels {
namespace {

__global__ void __launch_bounds__(kMaxBlockThreads) low_rank_start_kernel(LowRankTask task) {
  __shared__ FactorShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.matrices; i += gridDim.x) {
    start_factor(block, shared, task, i);
  }
}

template <DType kType>
__global__ void __launch_bounds__(kMaxBlockThreads) low_rank_multiply_kernel(LowRankTask task) {
  __shared__ MultiplyShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.row_tiles; i += gridDim.x) {
    multiply_tile<kType>(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) low_rank_orthonormal_kernel(LowRankTask task) {
  __shared__ FactorShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.matrices; i += gridDim.x) {
    orthonormalize(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) low_rank_transposed_kernel(LowRankTask task) {
  const CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.column_tiles; i += gridDim.x) {
    multiply_transposed_tile(block, task, i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) low_rank_sent_kernel(LowRankTask task) {
  __shared__ FactorShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.matrices; i += gridDim.x) {
    find_sent(block, shared, task, i);
  }
}

template <DType kType>
__global__ void __launch_bounds__(kMaxBlockThreads) low_rank_replace_kernel(LowRankTask task) {
  const CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.mean_tiles; i += gridDim.x) {
    replace_tile<kType>(block, task, i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) low_rank_keep_kernel(LowRankTask task) {
  const CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.matrices; i += gridDim.x) keep_start(block, task, i);
}

}  // namespace
}  // namespace thinwire::kernels

using namespace thinwire::kernels;

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_low_rank(const LowRankTask* task,
                                                         LowRankStage stage, void* stream) {
  const auto launch = [&](void (*kernel)(LowRankTask), std::uint64_t parts) {
    return launch_blocks(kernel, *task, parts, kMaxBlockThreads, stream);
  };
  switch (stage) {
    case LowRankStage::kStart:
      return launch(low_rank_start_kernel, task->matrices);
    case LowRankStage::kMultiply:
      return with_dtype(task->dtype, [&](auto dtype) {
        return launch(low_rank_multiply_kernel<decltype(dtype)::value>, task->row_tiles);
      });
    case LowRankStage::kOrthonormal:
      return launch(low_rank_orthonormal_kernel, task->matrices);
    case LowRankStage::kTransposed:
      return launch(low_rank_transposed_kernel, task->column_tiles);
    case LowRankStage::kSent:
      return launch(low_rank_sent_kernel, task->matrices);
    case LowRankStage::kReplace:
      return with_dtype(task->dtype, [&](auto dtype) {
        return launch(low_rank_replace_kernel<decltype(dtype)::value>, task->mean_tiles);
      });
    case LowRankStage::kKeepStart:
      return launch(low_rank_keep_kernel, task->matrices);
  }
  return cudaErrorInvalidValue;
}
