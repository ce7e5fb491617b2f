#include "thinwire/comm/average/device/scatter_run.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <numeric>

#include "thinwire/comm/average/device/table_upload.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

constexpr const char* kDeviceScatter = "scatter_reduce";

std::int64_t sum_of_sizes(const std::vector<std::int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
}

}  // namespace

DeviceScatter::Run::Run(DeviceScatter& owner, const DeviceExchange& exchange,
                        const PieceTables& tables, const Values& values)
    : owner_(owner), exchange_(exchange), tables_(tables), values_(values) {
  const auto stream = c10::impl::VirtualGuardImpl(owner.device_.type()).getStream(owner.device_);
  stream_ = stream.native_handle();
  table_ = {.pieces = tables.pieces(),
            .count = tables.piece_count(),
            .threads = tables.threads(),
            .workspace = data_of<std::byte>(owner.workspace_)};
}

kernels::PieceKey DeviceScatter::Run::key() const {
  return {exchange_.seed, exchange_.step, static_cast<std::uint32_t>(owner_.group_.getRank())};
}

at::Tensor DeviceScatter::Run::part(std::int64_t begin, std::int64_t bytes) const {
  return owner_.workspace_.narrow(0, begin, bytes);
}

void DeviceScatter::Run::wait_for(const WorkPtr& work) const {
  if (work) wait(owner_.group_, work, kDeviceScatter, exchange_.sequence);
}

void DeviceScatter::Run::sum(const FrameRun& run) const {
  owner_.module_.sum_frames({.frames = tables_.frames(run),
                             .count = run.count,
                             .segments = run.segments,
                             .workspace = table_.workspace,
                             .sums = data_of<std::uint64_t>(owner_.segment_sums_)},
                            stream_);
}

kernels::FrameTask DeviceScatter::Run::frame_task() const {
  kernels::FrameTask frames = exchange_.frame_task();
  frames.sums = data_of<std::uint64_t>(owner_.segment_sums_);
  frames.workspace = table_.workspace;
  frames.mean_finite = data_of<std::uint32_t>(owner_.mean_finite_);
  frames.residual_finite = data_of<std::uint32_t>(owner_.residual_finite_);
  frames.keep = data_of<std::uint32_t>(owner_.keep_);
  return frames;
}

void DeviceScatter::Run::handle(const kernels::FrameTask& frames) const {
  owner_.module_.handle_frames(frames, stream_);
}

void DeviceScatter::Run::send_slices(std::size_t index) {
  const DeviceChunk& chunk = tables_.chunks()[index];
  owner_.module_.encode_pieces({.table = table_,
                                .first_tile = chunk.tiles.first,
                                .tiles = chunk.tiles.count,
                                .dtype = values_.dtype,
                                .values = values_.data,
                                .lost = values_.lost,
                                .ranks = static_cast<float>(owner_.group_.getSize()),
                                .key = key(),
                                .residual_finite = data_of<std::uint32_t>(owner_.residual_finite_)},
                               stream_);
  sum(chunk.sent);
  kernels::FrameTask frames = frame_task();
  frames.leaving = tables_.frames(chunk.sent);
  frames.departures = chunk.sent.count;
  frames.begins = exchange_.begins && index == 0;
  handle(frames);
  scatters_.emplace_back();
  if (alone()) return;
  at::Tensor out = part(chunk.sent_at, sum_of_sizes(chunk.sent_sizes));
  at::Tensor in = part(chunk.received_at, sum_of_sizes(chunk.received_sizes));
  std::vector<std::int64_t> out_sizes = chunk.sent_sizes, in_sizes = chunk.received_sizes;
  scatters_.back() = owner_.group_.alltoall_base(in, out, in_sizes, out_sizes);
}

void DeviceScatter::Run::reduce(std::size_t index, float divisor) const {
  const DeviceChunk& chunk = tables_.chunks()[index];
  wait_for(scatters_[index]);
  owner_.module_.reduce_pieces({.table = table_,
                                .first_tile = chunk.own.first,
                                .tiles = chunk.own.count,
                                .stride = static_cast<std::uint64_t>(chunk.own_size),
                                .ranks = tables_.ranks(),
                                .divisor = divisor,
                                .sums = owner_.sums_.mutable_data_ptr<float>(),
                                .key = key(),
                                .mean_finite = data_of<std::uint32_t>(owner_.mean_finite_)},
                               stream_);
}

void DeviceScatter::Run::reduce_own_slice(std::size_t index) {
  const DeviceChunk& chunk = tables_.chunks()[index];
  reduce(index, static_cast<float>(owner_.group_.getSize()));
  if (chunk.reduced.count > 0) {
    sum(chunk.reduced);
    kernels::FrameTask frames = frame_task();
    frames.arrived = tables_.frames(chunk.reduced);
    frames.arrivals = chunk.reduced.count - 1;
    frames.leaving = frames.arrived + frames.arrivals;
    frames.departures = 1;
    handle(frames);
  }
  gather(index);
}

void DeviceScatter::Run::gather(std::size_t index) {
  const DeviceChunk& chunk = tables_.chunks()[index];
  gathers_.emplace_back();
  if (alone()) return;
  const std::int64_t ranks = tables_.ranks();
  at::Tensor in = part(chunk.arrived_at, chunk.mean_size * ranks);
  at::Tensor out = part(chunk.made_at, chunk.mean_size);
  if (chunk.mean_sizes.empty()) {
    if (chunk.mean_size > 0) gathers_.back() = owner_.group_._allgather_base(in, out);
    return;
  }
  // Among some of the group's ranks, a copy for each of them.
  if (chunk.mean_size > 0) {
    part(chunk.made_at + chunk.mean_size, chunk.mean_size * (ranks - 1))
        .view({ranks - 1, chunk.mean_size})
        .copy_(out);
  }
  out = part(chunk.made_at, chunk.mean_size * ranks);
  std::vector<std::int64_t> out_sizes = chunk.mean_sizes, in_sizes = chunk.mean_sizes;
  gathers_.back() = owner_.group_.alltoall_base(in, out, in_sizes, out_sizes);
}

void DeviceScatter::Run::hear_all() {
  for (const WorkPtr& gather : gathers_) wait_for(gather);
  sum(tables_.means());
  kernels::FrameTask frames = frame_task();
  frames.arrived = tables_.frames(tables_.means());
  frames.arrivals = tables_.means().count;
  frames.layers = tables_.layers();
  frames.layer_count = tables_.layer_count();
  handle(frames);
}

void DeviceScatter::Run::decode_all() const {
  owner_.module_.decode_pieces({.table = table_,
                                .first_tile = tables_.tiles().first,
                                .tiles = tables_.tiles().count,
                                .dtype = values_.dtype,
                                .values = values_.data,
                                .lost = values_.lost,
                                .sums = owner_.sums_.const_data_ptr<float>(),
                                .words = exchange_.words,
                                .keep = data_of<std::uint32_t>(owner_.keep_)},
                               stream_);
}

void DeviceScatter::Run::add_up(std::size_t index) {
  const DeviceChunk& chunk = tables_.chunks()[index];
  reduce(index, 1);
  sum(chunk.reduced);
  kernels::FrameTask frames = frame_task();
  frames.arrived = tables_.frames(chunk.reduced);
  frames.arrivals = chunk.reduced.count;
  handle(frames);
}

void DeviceScatter::Run::send_mean(std::size_t index) {
  const DeviceChunk& chunk = tables_.chunks()[index];
  sum(chunk.made);
  kernels::FrameTask frames = frame_task();
  frames.leaving = tables_.frames(chunk.made);
  frames.departures = chunk.made.count;
  handle(frames);
  gather(index);
}

void DeviceScatter::Run::hear_means(std::size_t index) {
  const DeviceChunk& chunk = tables_.chunks()[index];
  wait_for(gathers_[index]);
  sum(chunk.means);
  kernels::FrameTask frames = frame_task();
  frames.arrived = tables_.frames(chunk.means);
  frames.arrivals = chunk.means.count;
  handle(frames);
}

void DeviceScatter::Run::decode(std::size_t index, const kernels::DevicePiece* pieces,
                                const kernels::ExchangeWords* words, const at::Tensor& keep) const {
  const DeviceChunk& chunk = tables_.chunks()[index];
  kernels::PieceTable table = table_;
  table.pieces = pieces;
  owner_.module_.decode_pieces({.table = table,
                                .first_tile = chunk.tiles.first,
                                .tiles = chunk.tiles.count,
                                .dtype = values_.dtype,
                                .values = values_.data,
                                .lost = values_.lost,
                                .sums = owner_.sums_.const_data_ptr<float>(),
                                .words = words,
                                .keep = data_of<std::uint32_t>(keep)},
                               stream_);
}

void DeviceScatter::Run::decide() {
  kernels::FrameTask frames = frame_task();
  frames.layers = tables_.layers();
  frames.layer_count = tables_.layer_count();
  handle(frames);
}

at::Tensor DeviceScatter::Run::keep() const {
  return owner_.keep_.narrow(0, 0, tables_.layer_count());
}

at::Tensor DeviceScatter::Run::finite_means(std::size_t index) const {
  const TileRun& own = tables_.chunks()[index].own;
  return owner_.mean_finite_.narrow(0, static_cast<std::int64_t>(own.first),
                                    static_cast<std::int64_t>(own.count));
}

}  // namespace thinwire::comm
