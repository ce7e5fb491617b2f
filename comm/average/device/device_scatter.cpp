#include "thinwire/comm/average/device/device_scatter.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <numeric>
#include <vector>

#include "thinwire/comm/average/device/table_upload.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/wire/tensor_bridge.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

constexpr const char* kDeviceScatter = "scatter_reduce";

std::int64_t sum_of_sizes(const std::vector<std::int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
}

}  // namespace

// One exchange under way.
struct DeviceScatter::Run {
  using WorkPtr = c10::intrusive_ptr<c10d::Work>;

  const DeviceScatter& owner;
  const DeviceExchange& exchange;
  const PieceTables& tables;
  const at::Tensor& bucket;
  void* stream;
  kernels::PieceTable table;
  std::vector<WorkPtr> scatters = {}, gathers = {};

  bool alone() const { return owner.group_.getSize() == 1; }
  kernels::PieceKey key() const {
    return {exchange.seed, exchange.step, static_cast<std::uint32_t>(owner.group_.getRank())};
  }
  float* lost() const {
    return bucket.scalar_type() == at::kFloat ? bucket.mutable_data_ptr<float>()
                                              : owner.lost_.mutable_data_ptr<float>();
  }
  at::Tensor part(std::int64_t begin, std::int64_t bytes) const {
    return owner.workspace_.narrow(0, begin, bytes);
  }
  void wait_for(const WorkPtr& work) const {
    if (work) wait(owner.group_, work, kDeviceScatter, exchange.sequence);
  }

  void sum(const FrameRun& run) const;
  kernels::FrameTask frame_task() const;
  void send_slices(std::size_t index);
  void reduce_own_slice(std::size_t index);
  void deliver() const;
};

void DeviceScatter::Run::sum(const FrameRun& run) const {
  owner.module_.sum_frames({.frames = tables.frames(run),
                            .count = run.count,
                            .segments = run.segments,
                            .workspace = table.workspace,
                            .sums = data_of<std::uint64_t>(owner.segment_sums_)},
                           stream);
}

kernels::FrameTask DeviceScatter::Run::frame_task() const {
  return {.arrived = nullptr,
          .arrivals = 0,
          .leaving = nullptr,
          .departures = 0,
          .sums = data_of<std::uint64_t>(owner.segment_sums_),
          .workspace = table.workspace,
          .layout = exchange.layout,
          .sequence = exchange.sequence,
          .bucket = exchange.bucket,
          .begins = false,
          .words = exchange.words,
          .verdict = exchange.verdict,
          .mean_finite = data_of<std::uint32_t>(owner.mean_finite_),
          .layers = nullptr,
          .layer_count = 0,
          .residual_finite = data_of<std::uint32_t>(owner.residual_finite_),
          .keep = data_of<std::uint32_t>(owner.keep_)};
}

void DeviceScatter::Run::send_slices(std::size_t index) {
  const DeviceChunk& chunk = tables.chunks()[index];
  owner.module_.encode_pieces({.table = table,
                               .first_tile = chunk.tiles.first,
                               .tiles = chunk.tiles.count,
                               .dtype = dtype_of(bucket),
                               .values = bucket.const_data_ptr(),
                               .lost = lost(),
                               .ranks = static_cast<float>(owner.group_.getSize()),
                               .key = key(),
                               .residual_finite = data_of<std::uint32_t>(owner.residual_finite_)},
                              stream);
  sum(chunk.sent);
  kernels::FrameTask frames = frame_task();
  frames.leaving = tables.frames(chunk.sent);
  frames.departures = chunk.sent.count;
  frames.begins = exchange.begins && index == 0;
  owner.module_.handle_frames(frames, stream);
  scatters.emplace_back();
  if (alone()) return;
  at::Tensor out = part(chunk.sent_at, sum_of_sizes(chunk.sent_sizes));
  at::Tensor in = part(chunk.received_at, sum_of_sizes(chunk.received_sizes));
  std::vector<std::int64_t> out_sizes = chunk.sent_sizes, in_sizes = chunk.received_sizes;
  scatters.back() = owner.group_.alltoall_base(in, out, in_sizes, out_sizes);
}

void DeviceScatter::Run::reduce_own_slice(std::size_t index) {
  const DeviceChunk& chunk = tables.chunks()[index];
  wait_for(scatters[index]);
  owner.module_.reduce_pieces({.table = table,
                               .first_tile = chunk.own.first,
                               .tiles = chunk.own.count,
                               .stride = static_cast<std::uint64_t>(chunk.received_sizes.front()),
                               .ranks = static_cast<std::uint32_t>(owner.group_.getSize()),
                               .divisor = static_cast<float>(owner.group_.getSize()),
                               .sums = owner.sums_.mutable_data_ptr<float>(),
                               .key = key(),
                               .mean_finite = data_of<std::uint32_t>(owner.mean_finite_)},
                              stream);
  if (chunk.reduced.count > 0) {
    sum(chunk.reduced);
    kernels::FrameTask frames = frame_task();
    frames.arrived = tables.frames(chunk.reduced);
    frames.arrivals = chunk.reduced.count - 1;
    frames.leaving = frames.arrived + frames.arrivals;
    frames.departures = 1;
    owner.module_.handle_frames(frames, stream);
  }
  gathers.emplace_back();
  if (alone() || chunk.mean_size == 0) return;
  at::Tensor in = part(chunk.arrived_at, chunk.mean_size * owner.group_.getSize());
  at::Tensor out = part(chunk.made_at, chunk.mean_size);
  gathers.back() = owner.group_._allgather_base(in, out);
}

void DeviceScatter::Run::deliver() const {
  for (const WorkPtr& gather : gathers) wait_for(gather);
  sum(tables.means());
  kernels::FrameTask frames = frame_task();
  frames.arrived = tables.frames(tables.means());
  frames.arrivals = tables.means().count;
  frames.layers = tables.layers();
  frames.layer_count = tables.layer_count();
  owner.module_.handle_frames(frames, stream);
  owner.module_.decode_pieces({.table = table,
                               .first_tile = tables.tiles().first,
                               .tiles = tables.tiles().count,
                               .dtype = dtype_of(bucket),
                               .values = bucket.mutable_data_ptr(),
                               .lost = lost(),
                               .sums = owner.sums_.const_data_ptr<float>(),
                               .words = exchange.words,
                               .keep = data_of<std::uint32_t>(owner.keep_)},
                              stream);
}

DeviceScatter::DeviceScatter(c10d::ProcessGroup& group, at::Device device)
    : group_(group), device_(device), module_(CudaModule::get()) {}

void DeviceScatter::make_room(const PieceTables& tables, const at::Tensor& bucket) {
  enlarge(workspace_, tables.workspace_bytes(), at::kByte, device_);
  enlarge(sums_, tables.own_elements(), at::kFloat, device_);
  enlarge(segment_sums_, tables.most_segments(), at::kLong, device_);
  const auto tiles = static_cast<std::int64_t>(tables.tiles().count);
  enlarge(residual_finite_, tiles, at::kInt, device_);
  enlarge(mean_finite_, tiles, at::kInt, device_);
  enlarge(keep_, tables.layer_count(), at::kInt, device_);
  if (bucket.scalar_type() != at::kFloat) enlarge(lost_, bucket.numel(), at::kFloat, device_);
}

void DeviceScatter::average(const DeviceExchange& exchange, const PieceTables& tables,
                            const at::Tensor& bucket) {
  if (tables.tiles().count == 0) return;
  make_room(tables, bucket);
  const auto stream = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
  Run run{.owner = *this,
          .exchange = exchange,
          .tables = tables,
          .bucket = bucket,
          .stream = stream.native_handle(),
          .table = {.pieces = tables.pieces(),
                    .count = tables.piece_count(),
                    .threads = tables.threads(),
                    .workspace = data_of<std::byte>(workspace_)}};
  // A chunk is encoded while the one before it is on the wire. All ranks start their collectives in
  // this order.
  const std::size_t chunks = tables.chunks().size();
  for (std::size_t tick = 0; tick <= chunks; ++tick) {
    if (tick < chunks) run.send_slices(tick);
    if (tick >= 1) run.reduce_own_slice(tick - 1);
  }
  run.deliver();
}

std::size_t DeviceScatter::bytes() const {
  std::size_t bytes = 0;
  for (const at::Tensor* memory :
       {&workspace_, &lost_, &sums_, &segment_sums_, &residual_finite_, &mean_finite_, &keep_}) {
    if (memory->defined()) bytes += memory->nbytes();
  }
  return bytes;
}

}  // namespace thinwire::comm
