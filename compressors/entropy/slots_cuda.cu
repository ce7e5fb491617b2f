// The kernels of entropy-coded slots in GPU memory: slot_block.h, apply_block.h and code_block.h
// run by CUDA's threads. Never run on a GPU so far, see docs/gpu.md.
#include <cuda_runtime_api.h>

#include "thinwire/compressors/entropy/apply_block.h"
#include "thinwire/compressors/entropy/code_block.h"
#include "thinwire/compressors/entropy/slot_block.h"
#include "thinwire/compressors/kernels/cuda_abi.h"
#include "thinwire/compressors/kernels/cuda_block.h"

namespace thinwire::entropy {
namespace {

using kernels::CodeTask;
using kernels::CudaBlock;
using kernels::SlotTask;

// With fewer registers it spills.
__global__ void __launch_bounds__(kSlotThreads, 16) slot_read_kernel(SlotTask task) {
  __shared__ ReadShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.count; i += gridDim.x) {
    read_slot(block, shared, task.slots[i]);
  }
}

template <DType kType>
__global__ void __launch_bounds__(kernels::kMaxBlockThreads) slot_apply_kernel(SlotTask task) {
  __shared__ kernels::SumShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    apply_slot_tile<kType>(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kZoneSample) code_zone_kernel(CodeTask task) {
  __shared__ ZoneShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.count; i += gridDim.x) {
    choose_zone(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kernels::kMaxBlockThreads) code_tile_kernel(CodeTask task) {
  __shared__ CodeShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    code_tile(block, shared, task, i);
  }
}

__global__ void __launch_bounds__(kernels::kMaxBlockThreads) code_place_kernel(CodeTask task) {
  __shared__ kernels::SumShared shared;
  CudaBlock block;
  place_excess(block, shared, task);
}

__global__ void __launch_bounds__(kernels::kMaxBlockThreads) code_list_kernel(CodeTask task) {
  __shared__ kernels::SumShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    list_excess_of_tile(block, shared, task, i);
  }
}

}  // namespace
}  // namespace thinwire::entropy

using namespace thinwire;

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_slots(const kernels::SlotTask* task,
                                                      kernels::SlotStage stage, void* stream) {
  if (stage == kernels::SlotStage::kRead) {
    return kernels::launch_blocks(entropy::slot_read_kernel, *task, task->count,
                                  entropy::kSlotThreads, stream);
  }
  return kernels::with_dtype(task->dtype, [&](auto dtype) {
    return kernels::launch_blocks(entropy::slot_apply_kernel<decltype(dtype)::value>, *task,
                                  task->tiles, kernels::kMaxBlockThreads, stream);
  });
}

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_code_slot(const kernels::CodeTask* task,
                                                          kernels::CodeStage stage, void* stream) {
  const auto launch = [&](void (*kernel)(kernels::CodeTask), std::uint64_t parts) {
    return kernels::launch_blocks(kernel, *task, parts, kernels::kMaxBlockThreads, stream);
  };
  switch (stage) {
    case kernels::CodeStage::kZone:
      return launch(entropy::code_zone_kernel, task->count);
    case kernels::CodeStage::kCode:
      return launch(entropy::code_tile_kernel, task->tiles);
    case kernels::CodeStage::kPlace:
      return launch(entropy::code_place_kernel, 1);
    case kernels::CodeStage::kList:
      return launch(entropy::code_list_kernel, task->tiles);
  }
  return cudaErrorInvalidValue;
}
