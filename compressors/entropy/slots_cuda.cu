// The kernels of entropy-coded slots in GPU memory: encode_block.h, slot_block.h, apply_block.h and
// pass_block.h run by CUDA's threads. Never run on a GPU so far, see docs/gpu.md.
#include <cuda_runtime_api.h>

#include "thinwire/compressors/entropy/apply_block.h"
#include "thinwire/compressors/entropy/encode_block.h"
#include "thinwire/compressors/entropy/pass_block.h"
#include "thinwire/compressors/entropy/slot_block.h"
#include "thinwire/compressors/kernels/cuda_abi.h"
#include "thinwire/compressors/kernels/cuda_block.h"

namespace thinwire::entropy {
namespace {

using kernels::CudaBlock;
using kernels::SlotPassTask;
using kernels::SlotTask;
using kernels::WriteTask;

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

// Few blocks, each as wide as its values need: registers are not what is short.
__global__ void __launch_bounds__(kernels::kMaxBlockThreads, 1) slot_write_kernel(WriteTask task) {
  __shared__ EncodeShared shared;
  CudaBlock block;
  for (std::uint32_t i = blockIdx.x; i < task.count; i += gridDim.x) {
    write_slot(block, shared, task, i);
  }
}

// Calls each(block, shared, tile) of this block's tiles.
template <typename Each>
__device__ void for_each_tile(const SlotPassTask& task, const Each& each) {
  __shared__ kernels::SumShared shared;
  CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    each(block, shared, task.first_tile + i);
  }
}

template <DType kType>
__global__ void __launch_bounds__(kernels::kMaxBlockThreads)
    slot_correct_kernel(SlotPassTask task) {
  for_each_tile(task, [&](auto& block, auto&, std::uint64_t tile) {
    correct_tile<kType>(block, task, tile);
  });
}
__global__ void __launch_bounds__(kernels::kMaxBlockThreads) slot_lose_kernel(SlotPassTask task) {
  for_each_tile(task, [&](auto& block, auto& shared, std::uint64_t tile) {
    lose_tile(block, shared, task, tile);
  });
}
__global__ void __launch_bounds__(kernels::kMaxBlockThreads) slot_mean_kernel(SlotPassTask task) {
  for_each_tile(task, [&](auto& block, auto& shared, std::uint64_t tile) {
    mean_tile(block, shared, task, tile);
  });
}
__global__ void __launch_bounds__(kernels::kMaxBlockThreads)
    slot_lose_mean_kernel(SlotPassTask task) {
  for_each_tile(task, [&](auto& block, auto& shared, std::uint64_t tile) {
    lose_mean_tile(block, shared, task, tile);
  });
}
template <DType kType>
__global__ void __launch_bounds__(kernels::kMaxBlockThreads)
    slot_deliver_kernel(SlotPassTask task) {
  for_each_tile(task, [&](auto& block, auto& shared, std::uint64_t tile) {
    deliver_tile<kType>(block, shared, task, tile);
  });
}
__global__ void __launch_bounds__(kernels::kMaxBlockThreads) slot_report_kernel(SlotPassTask task) {
  report_slots(CudaBlock(), task);
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

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_write_slots(const kernels::WriteTask* task,
                                                            void* stream) {
  return kernels::launch_blocks(entropy::slot_write_kernel, *task, task->count,
                                kernels::kMaxBlockThreads, stream);
}

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_slot_pass(const kernels::SlotPassTask* task,
                                                          kernels::SlotPass pass, void* stream) {
  const auto launch = [&](void (*kernel)(kernels::SlotPassTask), std::uint64_t blocks) {
    return kernels::launch_blocks(kernel, *task, blocks, kernels::kMaxBlockThreads, stream);
  };
  switch (pass) {
    case kernels::SlotPass::kCorrect:
      return kernels::with_dtype(task->dtype, [&](auto dtype) {
        return launch(entropy::slot_correct_kernel<decltype(dtype)::value>, task->tiles);
      });
    case kernels::SlotPass::kLose:
      return launch(entropy::slot_lose_kernel, task->tiles);
    case kernels::SlotPass::kMean:
      return launch(entropy::slot_mean_kernel, task->tiles);
    case kernels::SlotPass::kLoseMean:
      return launch(entropy::slot_lose_mean_kernel, task->tiles);
    case kernels::SlotPass::kDeliver:
      return kernels::with_dtype(task->dtype, [&](auto dtype) {
        return launch(entropy::slot_deliver_kernel<decltype(dtype)::value>, task->tiles);
      });
    case kernels::SlotPass::kReport:
      return launch(entropy::slot_report_kernel, 1);
  }
  return cudaErrorInvalidValue;
}
