// The kernels of averaging chosen entries in GPU memory: select_block.h and entries_block.h run by
// CUDA's threads. Never run on a GPU so far, see docs/gpu.md.
#include <cuda_runtime_api.h>

#include "thinwire/compressors/kernels/cuda_abi.h"
#include "thinwire/compressors/kernels/cuda_block.h"
#include "thinwire/compressors/kernels/entries_block.h"

namespace thinwire::kernels {
namespace {

template <DType kType>
__global__ void __launch_bounds__(kMaxBlockThreads) sparse_correct_kernel(SparseTask task) {
  __shared__ SelectShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    correct_tile<kType>(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) sparse_pick_kernel(SparseTask task) {
  __shared__ SelectShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.count; i += gridDim.x) {
    pick_bin(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) sparse_count_kernel(SparseTask task) {
  __shared__ SelectShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    count_tile(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) sparse_tally_kernel(SparseTask task) {
  __shared__ SelectShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    tally_tile(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) sparse_before_kernel(SparseTask task) {
  __shared__ SelectShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.count; i += gridDim.x) {
    sum_tallies(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) sparse_gather_kernel(SparseTask task) {
  __shared__ SelectShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    gather_tile(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kMaxBlockThreads) sparse_scale_kernel(SparseTask task) {
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.count; i += gridDim.x) find_scale(block, task, i);
}

__global__ void __launch_bounds__(kMaxBlockThreads) sparse_pack_kernel(SparseTask task) {
  __shared__ EntriesShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.runs; i += gridDim.x) {
    pack_run(block, shared, task, i);
  }
}

// As reduce_pieces_kernel, for sm_90.
__global__ void __launch_bounds__(kMaxBlockThreads, 4) sparse_draw_kernel(SparseTask task) {
  const CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.runs; i += gridDim.x) draw_run(block, task, i);
}

__global__ void __launch_bounds__(kMaxBlockThreads) sparse_limit_kernel(SparseTask task) {
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.runs; i += gridDim.x) limit_run(block, task, i);
}

__global__ void __launch_bounds__(kMaxBlockThreads) sparse_poisoned_kernel(SparseTask task) {
  __shared__ EntriesShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.count * task.world; i += gridDim.x) {
    find_poisoned(block, shared, task, i);
  }
}

template <DType kType>
__global__ void __launch_bounds__(kMaxBlockThreads) sparse_decode_kernel(SparseTask task) {
  __shared__ EntriesShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    decode_entries_of_tile<kType, false>(block, shared, task, i);
  }
}

template <DType kType>
__global__ void __launch_bounds__(kMaxBlockThreads) sparse_spread_kernel(SparseTask task) {
  __shared__ EntriesShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    decode_entries_of_tile<kType, true>(block, shared, task, i);
  }
}

}  // namespace
}  // namespace thinwire::kernels

using namespace thinwire::kernels;

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_sparse(const SparseTask* task, SparseStage stage,
                                                       void* stream) {
  const auto launch = [&](void (*kernel)(SparseTask), std::uint64_t parts) {
    return launch_blocks(kernel, *task, parts, kMaxBlockThreads, stream);
  };
  switch (stage) {
    case SparseStage::kCorrect:
      return with_dtype(task->dtype, [&](auto dtype) {
        return launch(sparse_correct_kernel<decltype(dtype)::value>, task->tiles);
      });
    case SparseStage::kPick:
      return launch(sparse_pick_kernel, task->count);
    case SparseStage::kCount:
      return launch(sparse_count_kernel, task->tiles);
    case SparseStage::kTally:
      return launch(sparse_tally_kernel, task->tiles);
    case SparseStage::kBefore:
      return launch(sparse_before_kernel, task->count);
    case SparseStage::kGather:
      return launch(sparse_gather_kernel, task->tiles);
    case SparseStage::kScale:
      return launch(sparse_scale_kernel, task->count);
    case SparseStage::kPack:
      return launch(sparse_pack_kernel, task->runs);
    case SparseStage::kDraw:
      return launch(sparse_draw_kernel, task->runs);
    case SparseStage::kLimit:
      return launch(sparse_limit_kernel, task->runs);
    case SparseStage::kPoisoned:
      return launch(sparse_poisoned_kernel, std::uint64_t{task->count} * task->world);
    case SparseStage::kDecode:
      return with_dtype(task->dtype, [&](auto dtype) {
        return launch(sparse_decode_kernel<decltype(dtype)::value>, task->tiles);
      });
    case SparseStage::kSpread:
      return with_dtype(task->dtype, [&](auto dtype) {
        return launch(sparse_spread_kernel<decltype(dtype)::value>, task->tiles);
      });
  }
  return cudaErrorInvalidValue;
}
