#include "thinwire/comm/average/device/piece_tables.h"

#include <algorithm>
#include <numeric>
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

LayerDebts LayerDebts::of(const DeviceLayer& layer, bool keeps, bool pays, DeviceMemory& memory,
                          std::vector<at::Tensor>& held) {
  LayerDebts made;
  if (keeps) {
    made.residual = layer.lost.defined() ? layer.lost : memory.residual(layer.name, layer.numel);
  }
  if (!layer.compressed && pays) made.residual = memory.held(layer.name);
  if (pays) {
    made.orphan = memory.orphans(layer.name, layer.numel, layer.owned);
    made.leftover = memory.held_momentum(layer.name);
  }
  made.is_paid_back = made.orphan.defined() || made.leftover.defined() ||
                      (!layer.compressed && made.residual.defined());
  for (const at::Tensor& values : {made.residual, made.orphan, made.leftover}) {
    if (values.defined()) held.push_back(values);
  }
  return made;
}

kernels::DevicePiece piece_of_layer(const DeviceLayer& layer, const LayerDebts& debts,
                                    std::int64_t begin, std::int64_t numel) {
  kernels::DevicePiece piece{};
  piece.numel = static_cast<std::uint32_t>(numel);
  piece.layer_id = layer.id;
  piece.decay = layer.decay;
  piece.reset_every = layer.reset_every;
  piece.first_element = static_cast<std::uint64_t>(begin);
  piece.residual = address_of(debts.residual, begin);
  piece.orphan = address_of(debts.orphan, begin);
  piece.leftover = address_of(debts.leftover, begin);
  piece.keeps_loss = layer.keeps_loss;
  return piece;
}

// The tables on the host, while they grow.
struct PieceTables::Maker {
  PieceTables& tables;
  const std::span<const DeviceLayer> layers;
  const PieceScope& scope;
  const int rank, world;
  DeviceMemory& memory;

  struct Prepared {
    kernels::PieceFormat format;
    LayerDebts debts;
  };
  std::vector<Prepared> prepared = {};
  std::vector<kernels::DevicePiece> pieces = {};
  std::vector<kernels::DeviceFrame> frames = {};
  std::vector<kernels::LayerTiles> layer_tiles = {};

  void prepare_layers();
  void place_messages(int index, DeviceChunk& chunk);
  kernels::DevicePiece piece_of(int index, const Piece& piece, bool own);
  void add_pieces(int index, DeviceChunk& chunk);
  std::vector<std::int64_t> by_group_rank(const std::vector<std::int64_t>& by_member) const;
  void add_frames(int index, DeviceChunk& chunk);
  void add_frame(FrameRun& run, int index, int owner, std::int64_t offset, int sender, Leg leg,
                 const TileRun& made = {});
  void add_means(int index, DeviceChunk& chunk);
};

// Of each layer, what it is owed, and whether some of that is paid back for good.
void PieceTables::Maker::prepare_layers() {
  for (const DeviceLayer& layer : layers) {
    const auto format = layer.codec->piece_format();
    THINWIRE_ASSERT(format.has_value());
    Prepared made{*format, LayerDebts::of(layer, layer.keeps_loss && !scope.only_codes, scope.pays,
                                          memory, tables.held_)};
    tables.pays_back_ = tables.pays_back_ || made.debts.is_paid_back;
    prepared.push_back(std::move(made));
    std::uint32_t threads = 32;
    while (threads < kernels::kMaxBlockThreads && threads * 4 < format->tile) threads *= 2;
    tables.threads_ = std::max(tables.threads_, threads);
  }
}

std::vector<std::int64_t> PieceTables::Maker::by_group_rank(
    const std::vector<std::int64_t>& by_member) const {
  std::vector<std::int64_t> all(static_cast<std::size_t>(scope.group_size));
  for (std::size_t m = 0; m < by_member.size(); ++m) {
    all[static_cast<std::size_t>(scope.members[m])] = by_member[m];
  }
  return all;
}

void PieceTables::Maker::place_messages(int index, DeviceChunk& chunk) {
  const auto take = [this](std::int64_t bytes) {
    return std::exchange(tables.workspace_, tables.workspace_ + bytes);
  };
  const auto ranks = static_cast<std::size_t>(world);
  chunk.own_size = padded_frame(scope.slice(index, rank).frame_bytes());
  std::vector<std::int64_t> sizes;
  std::int64_t all = 0;
  for (int r = 0; r < world; ++r) {
    sizes.push_back(padded_frame(scope.slice(index, r).frame_bytes()));
    chunk.mean_size = std::max(chunk.mean_size, sizes.back());
    all += sizes.back();
  }
  chunk.sent_sizes = by_group_rank(sizes);
  chunk.received_sizes = by_group_rank(std::vector<std::int64_t>(ranks, chunk.own_size));
  chunk.sent_at = take(all);
  // A rank that is alone receives what it sends.
  chunk.received_at = world == 1 ? chunk.sent_at : take(chunk.own_size * world);
  std::int64_t copies = 1;
  if (!scope.is_whole_group()) {
    chunk.mean_sizes = by_group_rank(std::vector<std::int64_t>(ranks, chunk.mean_size));
    copies = world;
  }
  chunk.made_at = take(chunk.mean_size * copies);
  chunk.arrived_at = world == 1 ? chunk.made_at : take(chunk.mean_size * world);
  const auto others = static_cast<std::uint64_t>(world - 1);
  const std::uint64_t means = static_cast<std::uint64_t>(chunk.mean_size) * others;
  tables.sent_bytes_ += static_cast<std::uint64_t>(all - chunk.own_size) + means;
  tables.mean_bytes_ += means;
}

// But for the places of its payload.
kernels::DevicePiece PieceTables::Maker::piece_of(int index, const Piece& piece, bool own) {
  const PieceScope::Place place = scope.place(index, piece);
  const DeviceLayer& layer = layers[place.layer];
  const Prepared& ready = prepared[place.layer];
  at::Tensor second;
  if (own && scope.keeps_means && !layer.owned.empty()) {
    second = memory.second(layer.name, {place.begin, piece.numel});
    tables.held_.push_back(second);
  } else if (own && layer.lost_of_means.defined()) {
    second = layer.lost_of_means.narrow(0, place.begin, piece.numel);
  }
  kernels::DevicePiece made = piece_of_layer(layer, ready.debts, place.begin, piece.numel);
  made.format = ready.format;
  made.layer = static_cast<std::uint32_t>(place.layer);
  made.first_tile = tables.tiles_;
  made.value = static_cast<std::uint64_t>(place.value);
  made.own = static_cast<std::uint64_t>(tables.own_);
  made.second = address_of(second, 0);
  return made;
}

void PieceTables::Maker::add_pieces(int index, DeviceChunk& chunk) {
  chunk.tiles.first = tables.tiles_;
  std::int64_t sent = chunk.sent_at;
  for (int owner = 0; owner < world; ++owner) {
    const Slice& slice = scope.slice(index, owner);
    if (owner == rank) chunk.own.first = tables.tiles_;
    std::uint64_t byte = kFrameHeaderBytes;
    for (const Piece& piece : slice.pieces) {
      kernels::DevicePiece made = piece_of(index, piece, owner == rank);
      made.sent = static_cast<std::uint64_t>(sent) + byte;
      made.received = static_cast<std::uint64_t>(chunk.received_at) + byte;
      made.made = static_cast<std::uint64_t>(chunk.made_at) + byte;
      made.arrived = static_cast<std::uint64_t>(chunk.arrived_at + owner * chunk.mean_size) + byte;
      pieces.push_back(made);
      const std::uint64_t tiles = (made.numel + made.format.tile - 1) / made.format.tile;
      kernels::LayerTiles& run = layer_tiles[made.layer];
      if (run.tiles == 0) run.first_tile = tables.tiles_;
      run.tiles += tiles;
      tables.tiles_ += tiles;
      if (owner == rank) tables.own_ += piece.numel;
      byte += piece.bytes;
    }
    if (owner == rank) chunk.own.count = tables.tiles_ - chunk.own.first;
    sent += padded_frame(slice.frame_bytes());
  }
  chunk.tiles.count = tables.tiles_ - chunk.tiles.first;
}

void PieceTables::Maker::add_frame(FrameRun& run, int index, int owner, std::int64_t offset,
                                   int sender, Leg leg, const TileRun& made) {
  const Slice& slice = scope.slice(index, owner);
  if (run.count == 0) run.first = frames.size();
  const auto codec_of = [&](std::size_t layer) -> const Codec& {
    return *layers[scope.place(index, {.layer = layer}).layer].codec;
  };
  frames.push_back(
      {.offset = static_cast<std::uint64_t>(offset),
       .numel = static_cast<std::uint64_t>(slice.numel),
       .payload_bytes = slice.payload_bytes,
       .first_segment = run.segments,
       .segments = segments_of(slice.payload_bytes),
       .sender = static_cast<std::uint32_t>(scope.members[static_cast<std::size_t>(sender)]),
       .chunk = frame_chunk(index, leg),
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
    const Slice& slice = scope.slice(index, owner);
    if (slice.numel > 0) add_frame(chunk.sent, index, owner, sent, rank, Leg::kScatter);
    sent += padded_frame(slice.frame_bytes());
  }
  if (scope.slice(index, rank).numel == 0) return;
  for (int r = 0; r < world; ++r) {
    add_frame(chunk.reduced, index, rank, chunk.received_at + r * chunk.own_size, r, Leg::kScatter);
  }
  add_frame(scope.sums_apart ? chunk.made : chunk.reduced, index, rank, chunk.made_at, rank,
            Leg::kGather, chunk.own);
}

void PieceTables::Maker::add_means(int index, DeviceChunk& chunk) {
  FrameRun& run = scope.means_apart ? chunk.means : tables.means_;
  for (int owner = 0; owner < world; ++owner) {
    if (scope.slice(index, owner).numel == 0) continue;
    add_frame(run, index, owner, chunk.arrived_at + owner * chunk.mean_size, owner, Leg::kGather);
  }
}

PieceScope PieceScope::of_group(std::span<const DeviceLayer> layers, const Partition& partition,
                                int rank) {
  PieceScope scope{.members = std::vector<int>(static_cast<std::size_t>(partition.world())),
                   .rank = rank,
                   .group_size = partition.world(),
                   .chunks = partition.chunks(),
                   .slice = [&partition](int chunk, int owner) -> const Slice& {
                     return partition.slice(chunk, owner);
                   },
                   .place = [layers](int, const Piece& piece) -> Place {
                     return {piece.layer, piece.begin, layers[piece.layer].offset + piece.begin};
                   }};
  std::iota(scope.members.begin(), scope.members.end(), 0);
  return scope;
}

PieceTables::PieceTables(std::span<const DeviceLayer> layers, const Partition& partition, int rank,
                         at::Device device, DeviceMemory& memory)
    : PieceTables(layers, PieceScope::of_group(layers, partition, rank), device, memory) {}

PieceTables::PieceTables(std::span<const DeviceLayer> layers, const PieceScope& scope,
                         at::Device device, DeviceMemory& memory)
    : ranks_(static_cast<std::uint32_t>(scope.members.size())) {
  Maker maker{*this, layers, scope, scope.rank, static_cast<int>(scope.members.size()), memory};
  maker.layer_tiles.resize(layers.size());
  maker.prepare_layers();
  for (int c = 0; c < scope.chunks; ++c) {
    DeviceChunk chunk;
    maker.place_messages(c, chunk);
    maker.add_pieces(c, chunk);
    maker.add_frames(c, chunk);
    chunks_.push_back(std::move(chunk));
  }
  for (int c = 0; c < scope.chunks; ++c) {
    maker.add_means(c, chunks_[static_cast<std::size_t>(c)]);
  }
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
