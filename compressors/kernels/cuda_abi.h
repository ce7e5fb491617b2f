// The C interface of libthinwire_cuda.so, through which the library reaches its CUDA kernels. The
// library looks the functions up by name after dlopen() and uses none before the version agreed.
#pragma once

#include <cstdint>

#include "thinwire/compressors/kernels/low_rank_task.h"
#include "thinwire/compressors/kernels/piece_task.h"
#include "thinwire/compressors/kernels/planes_task.h"
#include "thinwire/compressors/kernels/quantize_task.h"
#include "thinwire/compressors/kernels/slot_task.h"
#include "thinwire/compressors/kernels/sparse_task.h"

namespace thinwire::kernels {

// Raise it whenever a function or a struct of this file, of quantize_task.h, piece_task.h,
// planes_task.h, slot_task.h, sparse_task.h or low_rank_task.h changes.
inline constexpr std::int32_t kCudaAbi = 9;

}  // namespace thinwire::kernels

// All kernels are queued on `stream` (a cudaStream_t, null: the default stream) of the calling
// thread's current device, to which all memory must belong; the functions do not wait for it. They
// return a cudaError_t, 0 for success, whose text thinwire_cuda_error() gives.
extern "C" {
std::int32_t thinwire_cuda_abi();
const char* thinwire_cuda_error(std::int32_t error);
std::int32_t thinwire_cuda_quantize(const thinwire::kernels::QuantizeTask* task, void* stream);
std::int32_t thinwire_cuda_dequantize(const thinwire::kernels::DequantizeTask* task, void* stream);
std::int32_t thinwire_cuda_encode_pieces(const thinwire::kernels::EncodeTask* task, void* stream);
std::int32_t thinwire_cuda_reduce_pieces(const thinwire::kernels::ReduceTask* task, void* stream);
std::int32_t thinwire_cuda_decode_pieces(const thinwire::kernels::DecodeTask* task, void* stream);
std::int32_t thinwire_cuda_sum_frames(const thinwire::kernels::SumTask* task, void* stream);
std::int32_t thinwire_cuda_sparse(const thinwire::kernels::SparseTask* task,
                                  thinwire::kernels::SparseStage stage, void* stream);
std::int32_t thinwire_cuda_low_rank(const thinwire::kernels::LowRankTask* task,
                                    thinwire::kernels::LowRankStage stage, void* stream);
std::int32_t thinwire_cuda_planes(const thinwire::kernels::PlanesTask* task,
                                  thinwire::kernels::PlanesStage stage, void* stream);
std::int32_t thinwire_cuda_slots(const thinwire::kernels::SlotTask* task,
                                 thinwire::kernels::SlotStage stage, void* stream);
std::int32_t thinwire_cuda_write_slots(const thinwire::kernels::WriteTask* task, void* stream);
std::int32_t thinwire_cuda_slot_pass(const thinwire::kernels::SlotPassTask* task,
                                     thinwire::kernels::SlotPass pass, void* stream);
std::int32_t thinwire_cuda_frames(const thinwire::kernels::FrameTask* task, void* stream);
}
