// Ternary planes on tensors in GPU memory: planes_block.h run by CUDA's threads. Never run on a GPU
// so far, see docs/gpu.md.
#include <cuda_runtime_api.h>

#include "thinwire/compressors/kernels/cuda_abi.h"
#include "thinwire/compressors/kernels/cuda_block.h"
#include "thinwire/compressors/kernels/planes_block.h"

namespace thinwire::kernels {
namespace {

template <PlanesStage kStage>
__global__ void __launch_bounds__(kMaxBlockThreads) planes_kernel(PlanesTask task) {
  const CudaBlock block;
  for (std::uint64_t i = blockIdx.x; i < task.tiles; i += gridDim.x) {
    planes_tile<kStage>(block, task, i);
  }
}

}  // namespace
}  // namespace thinwire::kernels

using namespace thinwire::kernels;

THINWIRE_CUDA_EXPORT std::int32_t thinwire_cuda_planes(const PlanesTask* task, PlanesStage stage,
                                                       void* stream) {
  void (*kernel)(PlanesTask) = stage == PlanesStage::kPutOn ? planes_kernel<PlanesStage::kPutOn>
                                                            : planes_kernel<PlanesStage::kTakeOff>;
  return launch_blocks(kernel, *task, task->tiles, kMaxBlockThreads, stream);
}
