#include "thinwire/comm/average/device/piece_tables.h"

#include <algorithm>
#include <span>
#include <utility>

#include "thinwire/comm/average/device/table_upload.h"
#include "thinwire/comm/average/reduce/scatter_frames.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/block.h"

namespace thinwire::comm {
namespace {

static_assert(kFrameHeaderBytes == kernels::kDeviceHeaderBytes);

}  // namespace

// The tables on the host, while they grow.
struct PieceTables::Maker {
  PieceTables& tables;
  const std::span<const DeviceLayer> layers;
  const Partition& partition;
  const int rank, world;
  DeviceMemory& memory;

  struct Prepared {
    kernels::PieceFormat format;
    at::Tensor residual, orphan, leftover;
  };
  std::vector<Prepared> prepared = {};
  std::vector<kernels::DevicePiece> pieces = {};
  std::vector<kernels::DeviceFrame> frames = {};
  std::vector<kernels::LayerTiles> layer_tiles = {};

  void prepare_layers();
  void place_messages(int index, DeviceChunk& chunk);
  void add_pieces(int index, DeviceChunk& chunk);
  void add_frames(int index, DeviceChunk& chunk);
  void add_frame(FrameRun& run, const Slice& slice, std::int64_t offset, int sender,
                 std::uint32_t chunk, const TileRun& made = {});
  void add_means();
};

// Of each layer, what it is owed, and whether some of that is paid back for good.
void PieceTables::Maker::prepare_layers() {
  for (const DeviceLayer& layer : layers) {
    const auto format = layer.codec->piece_format();
    THINWIRE_ASSERT(format.has_value());
    Prepared made;
    made.format = *format;
    if (layer.keeps_loss) {
      made.residual = layer.lost.defined() ? layer.lost : memory.residual(layer.name, layer.numel);
    }
    if (!layer.compressed) made.residual = memory.held(layer.name);
    made.orphan = memory.orphans(layer.name, layer.numel, layer.owned);
    made.leftover = memory.held_momentum(layer.name);
    tables.pays_back_ = tables.pays_back_ || made.orphan.defined() || made.leftover.defined() ||
                        (!layer.compressed && made.residual.defined());
    for (const at::Tensor& values : {made.residual, made.orphan, made.leftover}) {
      if (values.defined()) tables.held_.push_back(values);
    }
    prepared.push_back(std::move(made));
    std::uint32_t threads = 32;
    while (threads < kernels::kMaxBlockThreads && threads * 4 < format->tile) threads *= 2;
    tables.threads_ = std::max(tables.threads_, threads);
  }
}

void PieceTables::Maker::place_messages(int index, DeviceChunk& chunk) {
  const auto take = [this](std::int64_t bytes) {
    return std::exchange(tables.workspace_, tables.workspace_ + bytes);
  };
  const std::int64_t mine = padded_frame(partition.slice(index, rank).frame_bytes());
  std::int64_t all = 0;
  for (int r = 0; r < world; ++r) {
    chunk.sent_sizes.push_back(padded_frame(partition.slice(index, r).frame_bytes()));
    chunk.received_sizes.push_back(mine);
    chunk.mean_size = std::max(chunk.mean_size, chunk.sent_sizes.back());
    all += chunk.sent_sizes.back();
  }
  chunk.sent_at = take(all);
  // A rank that is alone receives what it sends.
  chunk.received_at = world == 1 ? chunk.sent_at : take(mine * world);
  chunk.made_at = take(chunk.mean_size);
  chunk.arrived_at = world == 1 ? chunk.made_at : take(chunk.mean_size * world);
  const auto others = static_cast<std::uint64_t>(world - 1);
  const std::uint64_t means = static_cast<std::uint64_t>(chunk.mean_size) * others;
  tables.sent_bytes_ += static_cast<std::uint64_t>(all - mine) + means;
  tables.mean_bytes_ += means;
}

void PieceTables::Maker::add_pieces(int index, DeviceChunk& chunk) {
  chunk.tiles.first = tables.tiles_;
  std::int64_t sent = chunk.sent_at;
  for (int owner = 0; owner < world; ++owner) {
    const Slice& slice = partition.slice(index, owner);
    if (owner == rank) chunk.own.first = tables.tiles_;
    std::uint64_t byte = kFrameHeaderBytes;
    for (const Piece& piece : slice.pieces) {
      const DeviceLayer& layer = layers[piece.layer];
      const Prepared& ready = prepared[piece.layer];
      const auto tile = static_cast<std::int64_t>(ready.format.tile);
      const auto tiles = static_cast<std::uint64_t>((piece.numel + tile - 1) / tile);
      at::Tensor second;
      if (owner == rank && !layer.owned.empty()) {
        second = memory.second(layer.name, {piece.begin, piece.numel});
        tables.held_.push_back(second);
      } else if (owner == rank && layer.lost_of_means.defined()) {
        second = layer.lost_of_means.narrow(0, piece.begin, piece.numel);
      }
      pieces.push_back(
          {.format = ready.format,
           .numel = static_cast<std::uint32_t>(piece.numel),
           .layer = static_cast<std::uint32_t>(piece.layer),
           .layer_id = layer.id,
           .decay = layer.decay,
           .reset_every = layer.reset_every,
           .first_tile = tables.tiles_,
           .value = static_cast<std::uint64_t>(layer.offset + piece.begin),
           .first_element = static_cast<std::uint64_t>(piece.begin),
           .own = static_cast<std::uint64_t>(tables.own_),
           .sent = static_cast<std::uint64_t>(sent) + byte,
           .received = static_cast<std::uint64_t>(chunk.received_at) + byte,
           .made = static_cast<std::uint64_t>(chunk.made_at) + byte,
           .arrived = static_cast<std::uint64_t>(chunk.arrived_at + owner * chunk.mean_size) + byte,
           .residual = address_of(ready.residual, piece.begin),
           .second = address_of(second, 0),
           .orphan = address_of(ready.orphan, piece.begin),
           .leftover = address_of(ready.leftover, piece.begin),
           .keeps_loss = layer.keeps_loss});
      kernels::LayerTiles& run = layer_tiles[piece.layer];
      if (run.tiles == 0) run.first_tile = tables.tiles_;
      run.tiles += tiles;
      tables.tiles_ += tiles;
      if (owner == rank) tables.own_ += piece.numel;
      byte += piece.bytes;
    }
    if (owner == rank) chunk.own.count = tables.tiles_ - chunk.own.first;
    sent += chunk.sent_sizes[static_cast<std::size_t>(owner)];
  }
  chunk.tiles.count = tables.tiles_ - chunk.tiles.first;
}

void PieceTables::Maker::add_frame(FrameRun& run, const Slice& slice, std::int64_t offset,
                                   int sender, std::uint32_t chunk, const TileRun& made) {
  if (run.count == 0) run.first = frames.size();
  const auto codec_of = [this](std::size_t layer) -> const Codec& { return *layers[layer].codec; };
  frames.push_back({.offset = static_cast<std::uint64_t>(offset),
                    .numel = static_cast<std::uint64_t>(slice.numel),
                    .payload_bytes = slice.payload_bytes,
                    .first_segment = run.segments,
                    .segments = segments_of(slice.payload_bytes),
                    .sender = static_cast<std::uint32_t>(sender),
                    .chunk = chunk,
                    .codec = codec_id_of(slice, codec_of),
                    .first_tile = made.first,
                    .tiles = made.count});
  ++run.count;
  run.segments += frames.back().segments;
  tables.most_segments_ = std::max(tables.most_segments_, run.segments);
}

void PieceTables::Maker::add_frames(int index, DeviceChunk& chunk) {
  std::int64_t sent = chunk.sent_at;
  for (int owner = 0; owner < world; ++owner) {
    const Slice& slice = partition.slice(index, owner);
    if (slice.numel > 0)
      add_frame(chunk.sent, slice, sent, rank, frame_chunk(index, Leg::kScatter));
    sent += chunk.sent_sizes[static_cast<std::size_t>(owner)];
  }
  const Slice& own = partition.slice(index, rank);
  if (own.numel == 0) return;
  for (int r = 0; r < world; ++r) {
    const std::int64_t at = chunk.received_at + r * chunk.received_sizes.front();
    add_frame(chunk.reduced, own, at, r, frame_chunk(index, Leg::kScatter));
  }
  add_frame(chunk.reduced, own, chunk.made_at, rank, frame_chunk(index, Leg::kGather), chunk.own);
}

void PieceTables::Maker::add_means() {
  for (int index = 0; index < partition.chunks(); ++index) {
    const DeviceChunk& chunk = tables.chunks_[static_cast<std::size_t>(index)];
    for (int owner = 0; owner < world; ++owner) {
      const Slice& slice = partition.slice(index, owner);
      if (slice.numel == 0) continue;
      add_frame(tables.means_, slice, chunk.arrived_at + owner * chunk.mean_size, owner,
                frame_chunk(index, Leg::kGather));
    }
  }
}

PieceTables::PieceTables(std::span<const DeviceLayer> layers, const Partition& partition, int rank,
                         at::Device device, DeviceMemory& memory) {
  Maker maker{*this, layers, partition, rank, partition.world(), memory};
  maker.layer_tiles.resize(layers.size());
  maker.prepare_layers();
  for (int c = 0; c < partition.chunks(); ++c) {
    DeviceChunk chunk;
    maker.place_messages(c, chunk);
    maker.add_pieces(c, chunk);
    maker.add_frames(c, chunk);
    chunks_.push_back(std::move(chunk));
  }
  maker.add_means();
  piece_count_ = static_cast<std::uint32_t>(maker.pieces.size());
  layer_count_ = static_cast<std::uint32_t>(layers.size());
  pieces_ = table_on(device, maker.pieces);
  frames_ = table_on(device, maker.frames);
  layers_ = table_on(device, maker.layer_tiles);
  memory_version_ = memory.version();
  record_on_current_stream(held_, device);
}

const kernels::DevicePiece* PieceTables::pieces() const {
  return static_cast<const kernels::DevicePiece*>(pieces_.const_data_ptr());
}

const kernels::DeviceFrame* PieceTables::frames(const FrameRun& run) const {
  return static_cast<const kernels::DeviceFrame*>(frames_.const_data_ptr()) + run.first;
}

const kernels::LayerTiles* PieceTables::layers() const {
  return static_cast<const kernels::LayerTiles*>(layers_.const_data_ptr());
}

}  // namespace thinwire::comm
