#include "thinwire/comm/average/device/device_slots.h"

#include <ATen/ops/cat.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <numeric>

#include "thinwire/comm/average/device/table_upload.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/wire/tensor_bridge.h"
#include "thinwire/compressors/entropy/rate_model.h"
#include "thinwire/compressors/entropy/step_coder.h"

namespace thinwire::comm {
namespace {

using kernels::SlotPass;

std::int64_t total_size(const std::vector<std::int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
}

}  // namespace

DeviceSlots::DeviceSlots(c10d::ProcessGroup& group, at::Device device)
    : group_(group), device_(device), module_(CudaModule::get()) {}

// As SlotReduce::find_steps(), whose samples of the layers are of the same elements.
float DeviceSlots::first_step(const SlotReduce& reduction, const SharedSteps::Use& use,
                              std::span<const DeviceLayer> layers, const at::Tensor& bucket,
                              const DeviceMemory& memory, int world) {
  std::vector<at::Tensor> samples;
  std::int64_t numel = 0;
  for (const DeviceLayer& layer : layers) {
    numel += layer.numel;
    const auto stride = static_cast<std::int64_t>(
        entropy::MagnitudeCounts::stride(static_cast<std::size_t>(layer.numel)));
    const auto every = [&](const at::Tensor& values) {
      return values.slice(0, 0, layer.numel, stride);
    };
    at::Tensor sample = every(bucket.narrow(0, layer.offset, layer.numel)).to(at::kFloat);
    const at::Tensor leftover = memory.held_momentum(layer.name);
    if (leftover.defined()) sample = sample.add(every(leftover));
    const at::Tensor orphan = memory.orphans(layer.name, layer.numel, layer.owned);
    if (orphan.defined()) sample = sample.add(every(orphan).mul(world));
    samples.push_back(sample);
  }
  const at::Tensor all = at::cat(samples).cpu();
  std::span<const float> rest(all.const_data_ptr<float>(), static_cast<std::size_t>(all.numel()));
  std::vector<entropy::MagnitudeCounts> classes;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto taken = static_cast<std::size_t>(samples[i].numel());
    classes.push_back(entropy::MagnitudeCounts::of_sample(
        rest.first(taken), static_cast<std::size_t>(layers[i].numel)));
    rest = rest.subspan(taken);
  }
  return entropy::step_for_bits(classes, use.slot_bits[kToOwners] * static_cast<double>(numel),
                                reduction.options().rounding());
}

void DeviceSlots::make_room(const SlotTables& tables, const at::Tensor& bucket) {
  enlarge(workspace_, tables.workspace_bytes(), at::kByte, device_);
  enlarge(scratch_, tables.scratch_bytes(), at::kByte, device_);
  if (bucket.scalar_type() != at::kFloat) enlarge(lost_, bucket.numel(), at::kFloat, device_);
  enlarge(sums_, tables.own_elements(), at::kFloat, device_);
  enlarge(begins_, static_cast<std::int64_t>(tables.chunks().size()), at::kFloat, device_);
  enlarge(segment_sums_, tables.most_segments(), at::kLong, device_);
  const auto tiles = static_cast<std::int64_t>(tables.tiles().count);
  enlarge(residual_finite_, tiles, at::kInt, device_);
  enlarge(mean_finite_, tiles, at::kInt, device_);
  enlarge(keep_, tables.layer_count(), at::kInt, device_);
}

kernels::SlotPassTask DeviceSlots::task_of(const DeviceExchange& exchange, const SlotTables& tables,
                                           const at::Tensor& bucket) const {
  kernels::SlotPassTask task{};
  task.pieces = tables.pieces();
  task.count = tables.piece_count();
  task.dtype = dtype_of(bucket);
  task.values = bucket.mutable_data_ptr();
  task.lost = data_of<float>(bucket.scalar_type() == at::kFloat ? bucket : lost_);
  task.sums = data_of<float>(sums_);
  task.step = exchange.step;
  task.ranks = task.divisor = static_cast<float>(group_.getSize());
  task.residual_finite = data_of<std::uint32_t>(residual_finite_);
  task.mean_finite = data_of<std::uint32_t>(mean_finite_);
  task.words = exchange.words;
  task.keep = data_of<std::uint32_t>(keep_);
  task.report = tables.report_memory();
  return task;
}

kernels::WriteTask DeviceSlots::write_task(const SlotTables& tables, float step) const {
  const entropy::StepChoice choice = tables.reduction().options().choice(step);
  kernels::WriteTask task{};
  task.ranks = static_cast<std::uint32_t>(group_.getSize());
  task.step = choice.step;
  task.rounding = choice.rounding;
  task.rounding_by_part = choice.rounding_by_part;
  task.fill = choice.fill;
  return task;
}

kernels::FrameTask DeviceSlots::frame_task(const DeviceExchange& exchange) const {
  kernels::FrameTask frames = exchange.frame_task();
  frames.sums = data_of<std::uint64_t>(segment_sums_);
  frames.workspace = data_of<std::byte>(workspace_);
  frames.mean_finite = data_of<std::uint32_t>(mean_finite_);
  frames.residual_finite = data_of<std::uint32_t>(residual_finite_);
  frames.keep = data_of<std::uint32_t>(keep_);
  return frames;
}

void DeviceSlots::sum(const SlotTables& tables, const FrameRun& run) const {
  module_.sum_frames({.frames = tables.frames(run),
                      .count = run.count,
                      .segments = run.segments,
                      .workspace = data_of<std::byte>(workspace_),
                      .sums = data_of<std::uint64_t>(segment_sums_)},
                     stream_);
}

void DeviceSlots::run(kernels::SlotPassTask task, SlotPass pass, const TileRun& tiles) const {
  task.first_tile = tiles.first;
  task.tiles = tiles.count;
  module_.run_slot_pass(task, pass, stream_);
}

at::Tensor DeviceSlots::part(std::int64_t begin, std::int64_t bytes) const {
  return workspace_.narrow(0, begin, bytes);
}

void DeviceSlots::wait_for(const DeviceExchange& exchange, const WorkPtr& work) const {
  if (work) wait(group_, work, "slot_reduce", exchange.sequence);
}

void DeviceSlots::exchange(const DeviceExchange& exchange, SlotTables& tables,
                           const SharedSteps::Use& use, const at::Tensor& bucket) {
  stream_ = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_).native_handle();
  tables.place(use);
  make_room(tables, bucket);
  tables.fill(data_of<std::byte>(workspace_), data_of<std::byte>(scratch_));
  scatters_.clear();
  gathers_.clear();
  const kernels::SlotPassTask task = task_of(exchange, tables, bucket);
  run(task, SlotPass::kCorrect, tables.tiles());
  // As DeviceScatter: a chunk is encoded while the one before it is on the wire.
  const std::size_t chunks = tables.chunks().size();
  for (std::size_t tick = 0; tick <= chunks; ++tick) {
    if (tick < chunks) send_slices(exchange, tables, use, task, tick);
    if (tick >= 1) reduce_own_slice(exchange, tables, use, task, tick - 1);
  }
  for (const WorkPtr& gather : gathers_) wait_for(exchange, gather);
  module_.run_slots({.slots = tables.slots(tables.first_mean()),
                     .count = tables.mean_slots(),
                     .tiles = 0,
                     .values = nullptr,
                     .dtype = DType::kFloat32,
                     .apply = kernels::SlotApply::kAssign},
                    kernels::SlotStage::kRead, stream_);
  sum(tables, tables.means());
  kernels::FrameTask frames = frame_task(exchange);
  frames.arrived = tables.frames(tables.means());
  frames.arrivals = tables.means().count;
  frames.states = tables.states_of_means();
  module_.handle_frames(frames, stream_);
}

void DeviceSlots::send_slices(const DeviceExchange& exchange, const SlotTables& tables,
                              const SharedSteps::Use& use, const kernels::SlotPassTask& task,
                              std::size_t index) {
  const SlotChunk& chunk = tables.chunks()[index];
  kernels::WriteTask write = write_task(tables, use.step[kToOwners]);
  write.slots = tables.codes(chunk.first_code);
  write.count = chunk.writes;
  write.values = task.lost;
  auto* const begins = data_of<float>(begins_);
  write.begin = index > 0 ? begins + index - 1 : nullptr;
  write.next_begin = begins + index;
  module_.write_slots(write, stream_);
  kernels::SlotPassTask lose = task;
  lose.slots = tables.slots(chunk.first_write);
  lose.slot_count = chunk.writes;
  run(lose, SlotPass::kLose, chunk.tiles);
  sum(tables, chunk.sent);
  kernels::FrameTask frames = frame_task(exchange);
  frames.leaving = tables.frames(chunk.sent);
  frames.departures = chunk.sent.count;
  frames.begins = exchange.begins && index == 0;
  module_.handle_frames(frames, stream_);
  scatters_.emplace_back();
  if (group_.getSize() == 1) return;
  at::Tensor out = part(chunk.sent_at, total_size(chunk.sent_sizes));
  at::Tensor in = part(chunk.received_at, total_size(chunk.received_sizes));
  std::vector<std::int64_t> out_sizes = chunk.sent_sizes, in_sizes = chunk.received_sizes;
  scatters_.back() = group_.alltoall_base(in, out, in_sizes, out_sizes);
}

void DeviceSlots::reduce_own_slice(const DeviceExchange& exchange, const SlotTables& tables,
                                   const SharedSteps::Use& use, const kernels::SlotPassTask& task,
                                   std::size_t index) {
  const SlotChunk& chunk = tables.chunks()[index];
  const auto world = static_cast<std::uint32_t>(group_.getSize());
  wait_for(exchange, scatters_[index]);
  if (chunk.own.count > 0) {
    const kernels::Slot* const received = tables.slots(chunk.first_received);
    module_.run_slots({.slots = received,
                       .count = world,
                       .tiles = 0,
                       .values = nullptr,
                       .dtype = DType::kFloat32,
                       .apply = kernels::SlotApply::kAssign},
                      kernels::SlotStage::kRead, stream_);
    kernels::SlotPassTask own = task;
    own.slots = received;
    own.slot_count = world;
    run(own, SlotPass::kMean, chunk.own);
    kernels::WriteTask write = write_task(tables, use.step[kToAll]);
    write.slots = tables.codes(chunk.first_code + chunk.writes);
    write.count = 1;
    write.values = task.sums;
    module_.write_slots(write, stream_);
    own.slots = tables.slots(chunk.mean);
    own.slot_count = 1;
    run(own, SlotPass::kLoseMean, chunk.own);
    sum(tables, chunk.reduced);
    kernels::FrameTask frames = frame_task(exchange);
    frames.arrived = tables.frames(chunk.reduced);
    frames.arrivals = chunk.reduced.count - 1;
    frames.states = tables.states_of_received(chunk);
    frames.leaving = frames.arrived + frames.arrivals;
    frames.departures = 1;
    module_.handle_frames(frames, stream_);
  }
  gathers_.emplace_back();
  if (world == 1 || chunk.mean_size == 0) return;
  at::Tensor in = part(chunk.arrived_at, chunk.mean_size * world);
  at::Tensor out = part(chunk.made_at, chunk.mean_size);
  gathers_.back() = group_._allgather_base(in, out);
}

void DeviceSlots::deliver(const DeviceExchange& exchange, SlotTables& tables,
                          const at::Tensor& bucket) {
  kernels::FrameTask frames = frame_task(exchange);
  frames.layers = tables.layers();
  frames.layer_count = tables.layer_count();
  module_.handle_frames(frames, stream_);
  kernels::SlotPassTask task = task_of(exchange, tables, bucket);
  task.slots = tables.slots(tables.first_mean());
  task.slot_count = tables.mean_slots();
  run(task, SlotPass::kDeliver, tables.tiles());
  run(task, SlotPass::kReport, tables.tiles());
  tables.report();
}

std::size_t DeviceSlots::bytes() const {
  std::size_t bytes = 0;
  for (const at::Tensor* memory : {&workspace_, &scratch_, &lost_, &sums_, &begins_, &segment_sums_,
                                   &residual_finite_, &mean_finite_, &keep_}) {
    if (memory->defined()) bytes += memory->nbytes();
  }
  return bytes;
}

}  // namespace thinwire::comm
