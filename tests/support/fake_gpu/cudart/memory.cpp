// Allocations and copies of libcudart.
#include <cuda_runtime_api.h>

#include <cstring>
#include <memory>
#include <vector>

#include "thinwire/tests/support/fake_gpu/cudart/error.h"
#include "thinwire/tests/support/fake_gpu/host_sync.h"
#include "thinwire/tests/support/fake_gpu/memory.h"
#include "thinwire/tests/support/fake_gpu/names.h"
#include "thinwire/tests/support/fake_gpu/settings.h"
#include "thinwire/tests/support/fake_gpu/stream.h"

namespace {

using namespace thinwire::fake_gpu;

// Memory that a task may touch after the call returned, and others therefore as well.
bool is_watched(const void* pointer) {
  return is_device(pointer) || is_pinned(pointer);
}

void count_copy(const void* to, const void* from) {
  AtomicCounters& count = counting();
  if (!is_device(from))
    ++count.to_device;
  else if (is_device(to))
    ++count.on_device;
  else
    ++count.to_host;
}

cudaError_t copy(void* to, const void* from, std::size_t bytes, Stream* stream, const char* call) {
  if (bytes == 0) return cudaSuccess;
  count_copy(to, from);
  Work work{call};
  if (is_watched(to)) work.accesses.push_back({to, bytes, true});
  if (is_watched(from)) {
    work.accesses.insert(work.accesses.begin(), {from, bytes, false});
    work.run = [=] { std::memmove(shadow(to), shadow(from), bytes); };
  } else {
    // CUDA reads pageable memory before the call returns.
    const auto* first = static_cast<const std::byte*>(from);
    work.run = [=, staged = std::vector<std::byte>(first, first + bytes)] {
      std::memcpy(shadow(to), staged.data(), bytes);
    };
  }
  enqueue(stream, std::move(work));
  if (!is_watched(to)) synchronize(stream, call);  // to pageable memory: complete at the return
  return cudaSuccess;
}

cudaError_t fill(void* data, int value, std::size_t bytes, Stream* stream, const char* call) {
  enqueue(stream, {call, [=] { std::memset(shadow(data), value, bytes); }, {{data, bytes, true}}});
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  ++counting().allocations;
  *pointer = allocate_device(bytes == 0 ? 1 : bytes, current_device());
  if (*pointer == nullptr) return failed(cudaErrorMemoryAllocation);
  forget(*pointer, bytes, Contents::kUnwritten);
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  const auto allocation = device_allocation_of(pointer);
  if (!allocation) return failed(cudaErrorInvalidValue);
  // cudaFree waits for the device, which orders nothing that a program may rely on.
  {
    const EmulationWait own;
    synchronize_device(device_of(pointer), "cudaFree");
  }
  forget(pointer, allocation->bytes, Contents::kWritten);
  free_device(pointer);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned) {
  ++counting().allocations;
  *pointer = allocate_pinned(bytes);
  if (*pointer == nullptr) return failed(cudaErrorMemoryAllocation);
  forget(*pointer, bytes, Contents::kWritten);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  run_everything();
  if (const auto allocation = pinned_allocation_of(pointer))
    forget(pointer, allocation->bytes, Contents::kWritten);
  free_pinned(pointer);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void*, std::size_t, unsigned) {
  return failed(cudaErrorNotSupported);
}

cudaError_t cudaHostUnregister(void*) {
  return failed(cudaErrorNotSupported);
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  Stream* stream = stream_of(nullptr);
  copy(to, from, bytes, stream, "cudaMemcpy");
  synchronize(stream, "cudaMemcpy");
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  return copy(to, from, bytes, stream_of(stream), "cudaMemcpyAsync");
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, std::size_t bytes,
                                cudaStream_t stream) {
  return copy(to, from, bytes, stream_of(stream), "cudaMemcpyPeerAsync");
}

cudaError_t cudaMemset(void* data, int value, std::size_t bytes) {
  return fill(data, value, bytes, stream_of(nullptr), "cudaMemset");
}

cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t stream) {
  return fill(data, value, bytes, stream_of(stream), "cudaMemsetAsync");
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  std::memset(attributes, 0, sizeof *attributes);
  auto* address = const_cast<void*>(pointer);
  if (is_device(pointer)) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->device = device_of(pointer);
    attributes->devicePointer = address;
  } else if (is_pinned(pointer)) {
    attributes->type = cudaMemoryTypeHost;
    attributes->hostPointer = attributes->devicePointer = address;
  } else {
    attributes->type = cudaMemoryTypeUnregistered;
    attributes->device = -1;
  }
  return cudaSuccess;
}
}
