#include "thinwire/compressors/cuda/cuda_module.h"

#include "thinwire/common/dynamic_library.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/cuda_abi.h"

namespace thinwire {
namespace {

constexpr const char* kModule = "libthinwire_cuda.so";

// Sets `function` to the module's function of that name.
template <typename Function>
void look_up(const DynamicLibrary& module, const char* name, Function& function) {
  function = reinterpret_cast<Function>(module.find(name));
  check(function != nullptr, "tensors in GPU memory: ", module.path(), " has no function ", name,
        "; install the module that was built with this library");
}

DynamicLibrary load(const std::vector<std::string>& modules) {
  try {
    return DynamicLibrary(modules);
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(concat(
        "tensors in GPU memory need thinwire's CUDA module ", kModule, ", which cannot be loaded (",
        error.what(),
        "). Build thinwire with THINWIRE_WITH_CUDA=ON, which needs nvcc, and keep the module "
        "beside libthinwire_core.so; or give tensors in host memory"));
  }
}

void check_aligned(const void* data, DType dtype) {
  check(reinterpret_cast<std::uintptr_t>(data) % size_of(dtype) == 0, "the tensor at ", data,
        " in GPU memory must be aligned to its elements of ", size_of(dtype), " bytes");
}

}  // namespace

CudaModule::Places CudaModule::Places::of_process() {
  Places places;
  places.disabled = Env::get().disable_cuda;
  places.modules.push_back(beside_library_of(&kModule, kModule));
  places.modules.emplace_back(kModule);
  return places;
}

const CudaModule& CudaModule::get() {
  static const CudaModule module(Places::of_process());
  return module;
}

CudaModule::CudaModule(const Places& places) {
  check(
      !places.disabled,
      "tensors in GPU memory: THINWIRE_DISABLE_CUDA=1 keeps thinwire from using CUDA; unset it, or "
      "give tensors in host memory");
  // Only asked whether it is there: CUDA's runtime in the module loads it by itself.
  try {
    DynamicLibrary driver({places.driver});
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(concat("tensors in GPU memory need NVIDIA's driver, but ", places.driver,
                                 " cannot be loaded (", error.what(),
                                 "); install the driver, or give tensors in host memory"));
  }
  const DynamicLibrary module = load(places.modules);
  path_ = module.path();
  std::int32_t (*abi)() = nullptr;
  look_up(module, "thinwire_cuda_abi", abi);
  check(abi() == kernels::kCudaAbi, "tensors in GPU memory: ", path_, " has interface version ",
        abi(), ", but this library needs ", kernels::kCudaAbi,
        "; install the module that was built with this library");
  look_up(module, "thinwire_cuda_error", error_);
  look_up(module, "thinwire_cuda_quantize", quantize_);
  look_up(module, "thinwire_cuda_dequantize", dequantize_);
  look_up(module, "thinwire_cuda_encode_pieces", encode_pieces_);
  look_up(module, "thinwire_cuda_reduce_pieces", reduce_pieces_);
  look_up(module, "thinwire_cuda_decode_pieces", decode_pieces_);
  look_up(module, "thinwire_cuda_sum_frames", sum_frames_);
  look_up(module, "thinwire_cuda_frames", handle_frames_);
  look_up(module, "thinwire_cuda_sparse", run_sparse_);
  look_up(module, "thinwire_cuda_low_rank", run_low_rank_);
  look_up(module, "thinwire_cuda_planes", run_planes_);
  look_up(module, "thinwire_cuda_write_slots", write_slots_);
  look_up(module, "thinwire_cuda_slot_pass", run_slot_pass_);
  look_up(module, "thinwire_cuda_slots", run_slots_);
}

void CudaModule::check_launch(const char* what, std::int32_t error) const {
  if (error == 0) return;
  throw Error(concat("CUDA could not start the kernel of ", what, ": ", error_(error), " (error ",
                     error, ")"));
}

void CudaModule::quantize(const kernels::QuantizeTask& task, void* stream) const {
  check_aligned(task.input, task.shape.dtype);
  check_aligned(task.reconstruction, task.shape.dtype);
  check_launch("quantize", quantize_(&task, stream));
}

void CudaModule::dequantize(const kernels::DequantizeTask& task, void* stream) const {
  check_aligned(task.output, task.shape.dtype);
  check_launch("dequantize", dequantize_(&task, stream));
}

void CudaModule::encode_pieces(const kernels::EncodeTask& task, void* stream) const {
  check_launch("encoding a bucket", encode_pieces_(&task, stream));
}

void CudaModule::reduce_pieces(const kernels::ReduceTask& task, void* stream) const {
  check_launch("the means of a bucket", reduce_pieces_(&task, stream));
}

void CudaModule::decode_pieces(const kernels::DecodeTask& task, void* stream) const {
  check_launch("decoding a bucket", decode_pieces_(&task, stream));
}

void CudaModule::sum_frames(const kernels::SumTask& task, void* stream) const {
  check_launch("the sums of frames", sum_frames_(&task, stream));
}

void CudaModule::handle_frames(const kernels::FrameTask& task, void* stream) const {
  check_launch("the headers of frames", handle_frames_(&task, stream));
}

void CudaModule::run_sparse(const kernels::SparseTask& task, kernels::SparseStage stage,
                            void* stream) const {
  check_launch("the entries of a bucket", run_sparse_(&task, stage, stream));
}

void CudaModule::run_low_rank(const kernels::LowRankTask& task, kernels::LowRankStage stage,
                              void* stream) const {
  check_launch("the factors of a bucket", run_low_rank_(&task, stage, stream));
}

void CudaModule::write_slots(const kernels::WriteTask& task, void* stream) const {
  check_launch("writing slots", write_slots_(&task, stream));
}

void CudaModule::run_slot_pass(const kernels::SlotPassTask& task, kernels::SlotPass pass,
                               void* stream) const {
  check_launch("averaging slots", run_slot_pass_(&task, pass, stream));
}

void CudaModule::run_slots(const kernels::SlotTask& task, kernels::SlotStage stage,
                           void* stream) const {
  check_launch("reading slots", run_slots_(&task, stage, stream));
}

void CudaModule::run_planes(const kernels::PlanesTask& task, kernels::PlanesStage stage,
                            void* stream) const {
  check_launch("an expert's trits", run_planes_(&task, stage, stream));
}

}  // namespace thinwire
