// The last error of a thread, as cudaGetLastError() tells it.
#pragma once

#include <cuda_runtime_api.h>

namespace thinwire::fake_gpu {

cudaError_t failed(cudaError_t error);  // returns it

}  // namespace thinwire::fake_gpu
