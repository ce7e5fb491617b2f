// The CUDA kernels, which lie in a library of their own, libthinwire_cuda.so, so that programs
// start on machines without a GPU driver. It is loaded when the first tensor in GPU memory arrives.
//
// The kernels have been compiled and their bodies tested on host threads, but they have never run
// on a GPU: docs/gpu.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "thinwire/compressors/kernels/low_rank_task.h"
#include "thinwire/compressors/kernels/piece_task.h"
#include "thinwire/compressors/kernels/planes_task.h"
#include "thinwire/compressors/kernels/quantize_task.h"
#include "thinwire/compressors/kernels/slot_task.h"
#include "thinwire/compressors/kernels/sparse_task.h"

namespace thinwire {

// Thread-safe. The work is queued on `stream` (a cudaStream_t; null: the default stream) of the
// calling thread's current device, to which all memory must belong, and is not waited for.
class CudaModule {
 public:
  struct Places {
    // THINWIRE_DISABLE_CUDA.
    bool disabled = false;
    // NVIDIA's driver, as dlopen() takes it.
    std::string driver = "libcuda.so.1";
    // Where the module may be, as dlopen() takes it; the first that can be loaded is.
    std::vector<std::string> modules;
    // This process's: the module beside the library, else where the system looks for libraries.
    static Places of_process();
  };

  // The process's module, loaded at the first call. Throws InvalidArgument as the constructor does;
  // a later call tries again.
  static const CudaModule& get();

  // Loads the module for the rest of the process. Throws InvalidArgument where CUDA is switched
  // off, the driver or the module is missing, or the module belongs to another version of the
  // library; the message says which, and what to do.
  explicit CudaModule(const Places& places);

  // The tensors' memory must be aligned to its elements (InvalidArgument). Throws Error with CUDA's
  // own words where the launch fails.
  void quantize(const kernels::QuantizeTask& task, void* stream) const;
  void dequantize(const kernels::DequantizeTask& task, void* stream) const;
  // Parts of an exchange, see piece_task.h; one launch each.
  void encode_pieces(const kernels::EncodeTask& task, void* stream) const;
  void reduce_pieces(const kernels::ReduceTask& task, void* stream) const;
  void decode_pieces(const kernels::DecodeTask& task, void* stream) const;
  void sum_frames(const kernels::SumTask& task, void* stream) const;
  void handle_frames(const kernels::FrameTask& task, void* stream) const;
  void run_sparse(const kernels::SparseTask& task, kernels::SparseStage stage, void* stream) const;
  void run_low_rank(const kernels::LowRankTask& task, kernels::LowRankStage stage,
                    void* stream) const;
  // Entropy-coded slots, see slot_task.h.
  void write_slots(const kernels::WriteTask& task, void* stream) const;
  void run_slots(const kernels::SlotTask& task, kernels::SlotStage stage, void* stream) const;
  void run_slot_pass(const kernels::SlotPassTask& task, kernels::SlotPass pass, void* stream) const;
  // An expert's trits on weights, see planes_task.h.
  void run_planes(const kernels::PlanesTask& task, kernels::PlanesStage stage, void* stream) const;

  // The file that was loaded.
  const std::string& path() const { return path_; }

 private:
  void check_launch(const char* what, std::int32_t error) const;

  std::string path_;
  const char* (*error_)(std::int32_t) = nullptr;
  std::int32_t (*quantize_)(const kernels::QuantizeTask*, void*) = nullptr;
  std::int32_t (*dequantize_)(const kernels::DequantizeTask*, void*) = nullptr;
  std::int32_t (*encode_pieces_)(const kernels::EncodeTask*, void*) = nullptr;
  std::int32_t (*reduce_pieces_)(const kernels::ReduceTask*, void*) = nullptr;
  std::int32_t (*decode_pieces_)(const kernels::DecodeTask*, void*) = nullptr;
  std::int32_t (*sum_frames_)(const kernels::SumTask*, void*) = nullptr;
  std::int32_t (*run_sparse_)(const kernels::SparseTask*, kernels::SparseStage, void*) = nullptr;
  std::int32_t (*run_low_rank_)(const kernels::LowRankTask*, kernels::LowRankStage,
                                void*) = nullptr;
  std::int32_t (*run_planes_)(const kernels::PlanesTask*, kernels::PlanesStage, void*) = nullptr;
  std::int32_t (*write_slots_)(const kernels::WriteTask*, void*) = nullptr;
  std::int32_t (*run_slot_pass_)(const kernels::SlotPassTask*, kernels::SlotPass, void*) = nullptr;
  std::int32_t (*run_slots_)(const kernels::SlotTask*, kernels::SlotStage, void*) = nullptr;
  std::int32_t (*handle_frames_)(const kernels::FrameTask*, void*) = nullptr;
};

}  // namespace thinwire
