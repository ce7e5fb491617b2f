#include "thinwire/comm/average/device/device_sparse.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "thinwire/comm/average/device/table_upload.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/wire/frame.h"
#include "thinwire/comm/wire/tensor_bridge.h"

namespace thinwire::comm {
namespace {

using kernels::SparseStage;

void* current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

}  // namespace

DeviceSparse::DeviceSparse(c10d::ProcessGroup& group, at::Device device, DeviceScatter& scatter)
    : group_(group), device_(device), module_(CudaModule::get()), scatter_(scatter) {}

void DeviceSparse::make_room(const SparseTables& tables, const at::Tensor& bucket) {
  const kernels::SparseTask task = tables.task();
  const auto layers = std::int64_t{task.count};
  const auto tiles = static_cast<std::int64_t>(task.tiles);
  const auto runs = static_cast<std::int64_t>(task.runs);
  const std::int64_t world = group_.getSize();
  enlarge(workspace_, tables.frame_bytes() * (world + 1), at::kByte, device_);
  if (bucket.scalar_type() != at::kFloat) enlarge(lost_, bucket.numel(), at::kFloat, device_);
  enlarge(states_, layers * static_cast<std::int64_t>(sizeof(kernels::SelectState)), at::kByte,
          device_);
  enlarge(bins_, layers * kernels::kSelectBins, at::kInt, device_);
  enlarge(tally_, 2 * tiles, at::kInt, device_);
  enlarge(indices_, tables.entries(), at::kInt, device_);
  enlarge(chosen_, tables.entries(), at::kFloat, device_);
  enlarge(magnitudes_, 4 * runs, at::kDouble, device_);
  enlarge(scales_, layers, at::kFloat, device_);
  enlarge(finite_, runs, at::kInt, device_);
  enlarge(poisoned_, layers * world, at::kInt, device_);
  enlarge(segment_sums_, world * tables.segments(), at::kLong, device_);
}

kernels::SparseTask DeviceSparse::task_of(const DeviceExchange& exchange,
                                          const SparseTables& tables,
                                          const at::Tensor& bucket) const {
  const int world = group_.getSize();
  kernels::SparseTask task = tables.task();
  task.dtype = dtype_of(bucket);
  task.values = bucket.mutable_data_ptr();
  task.lost = data_of<float>(bucket.scalar_type() == at::kFloat ? bucket : lost_);
  task.ranks = static_cast<float>(world);
  task.seed = exchange.seed;
  task.step = exchange.step;
  task.states = data_of<kernels::SelectState>(states_);
  task.bins = data_of<std::uint32_t>(bins_);
  task.tally = data_of<std::uint32_t>(tally_);
  task.indices = data_of<std::uint32_t>(indices_);
  task.chosen = data_of<float>(chosen_);
  task.magnitudes = data_of<double>(magnitudes_);
  task.scales = data_of<float>(scales_);
  task.finite = data_of<std::uint32_t>(finite_);
  auto* const frames = data_of<std::byte>(workspace_);
  task.payload = frames + kFrameHeaderBytes;
  task.arrived = task.payload + (world == 1 ? 0 : tables.frame_bytes());
  task.stride = static_cast<std::uint64_t>(tables.frame_bytes());
  task.world = static_cast<std::uint32_t>(world);
  task.divisor = static_cast<float>(world);
  task.poisoned = data_of<std::uint32_t>(poisoned_);
  task.words = exchange.words;
  return task;
}

void DeviceSparse::sum(const SparseTables& tables, const kernels::DeviceFrame* frames,
                       std::uint32_t count, void* stream) const {
  module_.sum_frames({.frames = frames,
                      .count = count,
                      .segments = count * tables.segments(),
                      .workspace = data_of<std::byte>(workspace_),
                      .sums = data_of<std::uint64_t>(segment_sums_)},
                     stream);
}

void DeviceSparse::exchange(const DeviceExchange& exchange, const SparseTables& tables,
                            const at::Tensor& bucket) {
  make_room(tables, bucket);
  void* const stream = current_stream(device_);
  kernels::SparseTask task = task_of(exchange, tables, bucket);
  const auto run = [&](SparseStage stage) { module_.run_sparse(task, stage, stream); };
  run(SparseStage::kCorrect);
  run(SparseStage::kPick);
  if (tables.slices() != nullptr) {
    run(SparseStage::kDraw);
    scatter_.average(exchange, *tables.slices(), chosen_.narrow(0, 0, tables.entries()));
    return run(SparseStage::kLimit);
  }
  for (task.pass = 1; task.pass < kernels::kSelectPasses; ++task.pass) {
    run(SparseStage::kCount);
    run(SparseStage::kPick);
  }
  for (const SparseStage stage : {SparseStage::kTally, SparseStage::kBefore, SparseStage::kGather,
                                  SparseStage::kScale, SparseStage::kPack}) {
    run(stage);
  }
  gather(exchange, tables, task, stream);
}

// Sends the frame to all and looks at theirs.
void DeviceSparse::gather(const DeviceExchange& exchange, const SparseTables& tables,
                          const kernels::SparseTask& task, void* stream) {
  const auto world = static_cast<std::uint32_t>(group_.getSize());
  kernels::FrameTask frames = exchange.frame_task();
  frames.sums = data_of<std::uint64_t>(segment_sums_);
  frames.workspace = data_of<std::byte>(workspace_);
  frames.mean_finite = task.finite;
  frames.leaving = tables.leaving();
  frames.departures = 1;
  frames.begins = exchange.begins;
  sum(tables, tables.leaving(), 1, stream);
  module_.handle_frames(frames, stream);
  if (world > 1) {
    at::Tensor out = workspace_.narrow(0, 0, tables.frame_bytes());
    at::Tensor in = workspace_.narrow(0, tables.frame_bytes(), tables.frame_bytes() * world);
    wait(group_, group_._allgather_base(in, out), "gather_reduce", exchange.sequence);
  }
  frames.departures = 0;
  frames.begins = false;
  frames.arrived = tables.arriving();
  frames.arrivals = world;
  sum(tables, tables.arriving(), world, stream);
  module_.handle_frames(frames, stream);
}

void DeviceSparse::deliver(const DeviceExchange& exchange, const SparseTables& tables,
                           const at::Tensor& bucket) {
  void* const stream = current_stream(device_);
  const kernels::SparseTask task = task_of(exchange, tables, bucket);
  module_.run_sparse(task, SparseStage::kPoisoned, stream);
  const bool drawn = tables.slices() != nullptr;
  module_.run_sparse(task, drawn ? SparseStage::kSpread : SparseStage::kDecode, stream);
}

std::size_t DeviceSparse::bytes() const {
  std::size_t bytes = 0;
  for (const at::Tensor* memory :
       {&workspace_, &lost_, &chosen_, &magnitudes_, &scales_, &states_, &segment_sums_, &bins_,
        &tally_, &indices_, &finite_, &poisoned_}) {
    if (memory->defined()) bytes += memory->nbytes();
  }
  return bytes;
}

}  // namespace thinwire::comm
