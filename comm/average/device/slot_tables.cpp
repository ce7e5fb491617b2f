#include "thinwire/comm/average/device/slot_tables.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "thinwire/comm/average/device/table_upload.h"
#include "thinwire/comm/average/reduce/scatter_frames.h"
#include "thinwire/comm/average/reduce/slot_coding.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/step_coder.h"
#include "thinwire/compressors/entropy/step_search.h"

namespace thinwire::comm {
namespace {

// Memory that is given out piece by piece.
struct ScratchCursor {
  std::int64_t at = 0;
  std::int64_t take(std::size_t bytes) { return std::exchange(at, at + padded_frame(bytes)); }
};

std::uint32_t slot_tiles(std::uint64_t numel) {
  return static_cast<std::uint32_t>((numel + kernels::kSlotTile - 1) / kernels::kSlotTile);
}

c10::Stream stream_of(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

at::Tensor pinned_bytes(std::int64_t count) {
  return at::empty({count}, at::TensorOptions(at::kByte).pinned_memory(true));
}

}  // namespace

// The tables that stay, on the host, while they grow.
struct SlotTables::Maker {
  SlotTables& tables;
  const std::span<const DeviceLayer> layers;
  DeviceMemory& memory;
  std::vector<LayerDebts> debts = {};
  std::vector<kernels::DevicePiece> pieces = {};
  std::vector<kernels::SlotPart> parts = {}, own_parts = {};
  std::vector<kernels::SampledPart> sampled = {};

  void add_slice(int chunk, int owner);
  void add_piece(const Piece& piece, bool own, Shape& shape);
  void add_sampled(std::int64_t numel, std::size_t period, Shape& shape, std::uint32_t& runs);
  void place_codes();
  Scratch take_read(ScratchCursor& cursor, const Shape& shape, std::int64_t state) const;
  void mark_layers();
};

void SlotTables::Maker::add_sampled(std::int64_t numel, std::size_t period, Shape& shape,
                                    std::uint32_t& runs) {
  const auto size = static_cast<std::size_t>(numel);
  const std::size_t of_part = period > 0 ? entropy::sampled_runs(size, period) : 0;
  const std::size_t taken = of_part == 1 ? std::min<std::size_t>(size, entropy::kSampledRun)
                                         : entropy::kSampledRun * of_part;
  sampled.push_back({{shape.sample_numel, shape.sample_numel, static_cast<std::uint32_t>(taken),
                      shape.sample_tiles},
                     runs,
                     static_cast<std::uint32_t>(of_part),
                     entropy::sample_weight(size, taken)});
  runs += static_cast<std::uint32_t>(of_part);
  shape.sample_numel += taken;
  shape.sample_tiles += slot_tiles(taken);
}

void SlotTables::Maker::add_piece(const Piece& piece, bool own, Shape& shape) {
  const DeviceLayer& layer = layers[piece.layer];
  const auto numel = static_cast<std::uint32_t>(piece.numel);
  kernels::DevicePiece made = piece_of_layer(layer, debts[piece.layer], piece.begin, piece.numel);
  made.layer = static_cast<std::uint32_t>(piece.layer);
  made.first_tile = tables.tiles_;
  made.value = static_cast<std::uint64_t>(layer.offset + piece.begin);
  made.own = static_cast<std::uint64_t>(tables.own_);
  if (own && !layer.owned.empty()) {
    const at::Tensor second = memory.second(layer.name, {piece.begin, piece.numel});
    tables.held_.push_back(second);
    made.second = address_of(second, 0);
  }
  pieces.push_back(made);
  parts.push_back({shape.numel, made.value, numel, shape.tiles});
  if (own) {
    own_parts.push_back({shape.numel, made.own, numel, shape.tiles});
    tables.own_ += piece.numel;
  }
  shape.numel += numel;
  shape.tiles += slot_tiles(numel);
  tables.tiles_ += slot_tiles(numel);
}

void SlotTables::Maker::add_slice(int chunk, int owner) {
  const Slice& slice = tables.slice(chunk, owner);
  Shape& shape = tables.shape(chunk, owner);
  const bool own = owner == tables.rank_;
  shape.first_part = static_cast<std::uint32_t>(parts.size());
  shape.own_part = static_cast<std::uint32_t>(own_parts.size());
  shape.parts = static_cast<std::uint32_t>(slice.pieces.size());
  shape.first_tile = tables.tiles_;
  const auto numel = static_cast<std::size_t>(slice.numel);
  const bool samples = entropy::StepEncoder::samples(numel, slice.pieces.size());
  std::uint32_t runs = 0;
  for (const Piece& piece : slice.pieces) {
    add_piece(piece, own, shape);
    add_sampled(piece.numel, samples ? entropy::sample_period(numel) : 0, shape, runs);
  }
}

SlotTables::Scratch SlotTables::Maker::take_read(ScratchCursor& cursor, const Shape& shape,
                                                 std::int64_t state) const {
  Scratch taken;
  taken.read = cursor.take(shape.parts * sizeof(kernels::ReadPart));
  taken.symbols = cursor.take(shape.numel);
  taken.before = cursor.take((shape.tiles + 1) * sizeof(std::uint32_t));
  taken.excess = cursor.take(shape.numel * sizeof(std::uint32_t));
  taken.state = state;
  return taken;
}

// Chunks follow one another, and the means are read after all of them: they take the same memory.
void SlotTables::Maker::place_codes() {
  const auto world = static_cast<std::size_t>(tables.world_);
  for (std::size_t c = 0; c < tables.chunks_.size(); ++c) {
    ScratchCursor cursor;
    for (Shape& shape : tables.shapes_[c]) {
      const std::int64_t state = cursor.take(sizeof(kernels::ReadState));
      shape.codes = take_read(cursor, shape, state);
      shape.codes.coded = cursor.take(shape.parts * sizeof(kernels::CodedPart));
      shape.codes.groups = cursor.take(shape.parts * sizeof(kernels::CodedGroup));
      shape.codes.sample = cursor.take(shape.sample_numel * sizeof(float));
    }
    Shape& own = tables.shapes_[c][static_cast<std::size_t>(tables.rank_)];
    const std::int64_t states = cursor.take(world * sizeof(kernels::ReadState));
    tables.received_states_.push_back(states);
    for (std::size_t r = 0; r < world; ++r) {
      own.received.push_back(take_read(
          cursor, own, states + static_cast<std::int64_t>(r * sizeof(kernels::ReadState))));
    }
    tables.scratch_ = std::max(tables.scratch_, cursor.at);
  }
  ScratchCursor cursor;
  tables.mean_states_ = cursor.take(tables.mean_slots_ * sizeof(kernels::ReadState));
  std::int64_t state = tables.mean_states_;
  for (std::vector<Shape>& owners : tables.shapes_) {
    for (Shape& shape : owners) {
      if (shape.numel == 0) continue;
      shape.mean = take_read(cursor, shape, state);
      state += static_cast<std::int64_t>(sizeof(kernels::ReadState));
    }
  }
  tables.scratch_ = std::max(tables.scratch_, cursor.at);
}

// Slots have tiles of many layers; whether a layer's losses are finite is asked of all of its own.
void SlotTables::Maker::mark_layers() {
  std::vector<kernels::LayerTiles> marks(layers.size());
  for (const kernels::DevicePiece& piece : pieces) {
    marks[piece.layer].tiles += slot_tiles(piece.numel);
  }
  std::uint64_t first = 0;
  for (kernels::LayerTiles& layer : marks) {
    layer.first_tile = first;
    first += layer.tiles;
  }
  std::vector<std::uint64_t> next;
  for (const kernels::LayerTiles& layer : marks) next.push_back(layer.first_tile);
  for (kernels::DevicePiece& piece : pieces) {
    piece.first_mark = next[piece.layer];
    next[piece.layer] += slot_tiles(piece.numel);
  }
  tables.layers_ = table_on(tables.report_.device(), marks);
}

SlotTables::SlotTables(std::span<const DeviceLayer> layers, const SlotReduce& reduction, int rank,
                       int world, at::Device device, DeviceMemory& memory)
    : reduction_(reduction),
      slices_(reduction.slices()),
      shared_(reduction.shared()),
      steps_(reduction.steps()),
      rank_(rank),
      world_(world),
      group_(layers.front().name),
      chunks_(slices_.size()),
      shapes_(slices_.size(), std::vector<Shape>(static_cast<std::size_t>(world))) {
  Maker maker{*this, layers, memory};
  for (const DeviceLayer& layer : layers) {
    maker.debts.push_back(LayerDebts::of(layer, layer.keeps_loss, /*pays=*/true, memory, held_));
    pays_back_ = pays_back_ || maker.debts.back().is_paid_back;
  }
  std::uint32_t frames = 0;
  for (std::size_t c = 0; c < chunks_.size(); ++c) {
    SlotChunk& chunk = chunks_[c];
    chunk.tiles.first = tiles_;
    chunk.first_code = codes_total_;
    for (int owner = 0; owner < world; ++owner) {
      maker.add_slice(static_cast<int>(c), owner);
      const Shape& made = shape(static_cast<int>(c), owner);
      if (owner == rank) chunk.own = {made.first_tile, made.tiles};
      chunk.writes += made.numel > 0 ? 1 : 0;
    }
    chunk.tiles.count = tiles_ - chunk.tiles.first;
    mean_slots_ += chunk.writes;
    const std::uint32_t owns = chunk.own.count > 0 ? 1 : 0;
    slots_total_ += chunk.writes + owns * static_cast<std::uint32_t>(1 + world);
    codes_total_ += chunk.writes + owns;
    frames += 2 * chunk.writes + owns * static_cast<std::uint32_t>(1 + world);
  }
  first_mean_ = slots_total_;
  slots_total_ += mean_slots_;
  layer_count_ = static_cast<std::uint32_t>(layers.size());
  piece_count_ = static_cast<std::uint32_t>(maker.pieces.size());
  const auto bytes = at::TensorOptions(at::kByte).device(device);
  const auto report = static_cast<std::int64_t>(mean_slots_ * sizeof(kernels::MeanPrefix) +
                                                sizeof(kernels::ExchangeWords));
  report_ = at::zeros({report}, bytes);
  pinned_report_ = pinned_bytes(report);
  const auto made = static_cast<std::int64_t>(codes_total_ * sizeof(kernels::SlotCode) +
                                              slots_total_ * sizeof(kernels::Slot) +
                                              frames * sizeof(kernels::DeviceFrame));
  made_ = at::zeros({made}, bytes);
  pinned_ = pinned_bytes(made);
  maker.place_codes();
  maker.mark_layers();
  pieces_ = table_on(device, maker.pieces);
  parts_ = table_on(device, maker.parts);
  own_parts_ = table_on(device, maker.own_parts);
  sampled_ = table_on(device, maker.sampled);
  memory_version_ = memory.version();
  record_on_current_stream(held_, device);
}

const Slice& SlotTables::slice(int chunk, int owner) const {
  return slices_[static_cast<std::size_t>(chunk)][static_cast<std::size_t>(owner)];
}

SlotTables::Shape& SlotTables::shape(int chunk, int owner) {
  return shapes_[static_cast<std::size_t>(chunk)][static_cast<std::size_t>(owner)];
}

void SlotTables::place(const SharedSteps::Use& use) {
  const auto take = [this](std::int64_t bytes) {
    return std::exchange(workspace_, workspace_ + bytes);
  };
  const auto world = static_cast<std::size_t>(world_);
  workspace_ = 0;
  sent_bytes_ = mean_bytes_ = 0;
  std::uint32_t of_means = 0;
  slot_bytes_.assign(chunks_.size(), {});
  for (std::size_t c = 0; c < chunks_.size(); ++c) {
    SlotChunk& chunk = chunks_[c];
    chunk.sent_sizes.clear();
    chunk.mean_size = 0;
    std::int64_t all = 0;
    std::uint32_t of_sent = 0;
    for (std::size_t owner = 0; owner < world; ++owner) {
      const Slice& s = slice(static_cast<int>(c), static_cast<int>(owner));
      std::array<std::size_t, 2> bytes{};
      std::array<std::int64_t, 2> frames{};
      for (const std::size_t leg : {kToOwners, kToAll}) {
        bytes[leg] = slot_bytes_of(s, use, leg, c * world + owner);
        frames[leg] = bytes[leg] == 0 ? 0 : padded_frame(kFrameHeaderBytes + bytes[leg]);
      }
      slot_bytes_[c].push_back(bytes);
      of_sent += segments_of(bytes[kToOwners]);
      of_means += segments_of(bytes[kToAll]);
      chunk.sent_sizes.push_back(frames[kToOwners]);
      chunk.mean_size = std::max(chunk.mean_size, frames[kToAll]);
      all += frames[kToOwners];
    }
    const auto& own = slot_bytes_[c][static_cast<std::size_t>(rank_)];
    most_segments_ = std::max({most_segments_, of_sent, of_means,
                               static_cast<std::uint32_t>(world_) * segments_of(own[kToOwners]) +
                                   segments_of(own[kToAll])});
    chunk.own_size = chunk.sent_sizes[static_cast<std::size_t>(rank_)];
    chunk.received_sizes.assign(world, chunk.own_size);
    chunk.sent_at = take(all);
    // A rank that is alone receives what it sends.
    chunk.received_at = world_ == 1 ? chunk.sent_at : take(chunk.own_size * world_);
    chunk.made_at = take(chunk.mean_size);
    chunk.arrived_at = world_ == 1 ? chunk.made_at : take(chunk.mean_size * world_);
    const std::uint64_t means =
        static_cast<std::uint64_t>(chunk.mean_size) * static_cast<std::uint64_t>(world_ - 1);
    sent_bytes_ += static_cast<std::uint64_t>(all - chunk.own_size) + means;
    mean_bytes_ += means;
  }
}

void SlotTables::add_frame(FrameRun& run, int chunk, int owner, std::int64_t offset, int sender,
                           Leg leg) {
  const Slice& s = slice(chunk, owner);
  const std::size_t bytes =
      slot_bytes_[static_cast<std::size_t>(chunk)][static_cast<std::size_t>(owner)]
                 [static_cast<std::size_t>(leg)];
  if (run.count == 0) run.first = frames_.size();
  const SlotChunk& of = chunks_[static_cast<std::size_t>(chunk)];
  const bool made = leg == Leg::kGather && offset == of.made_at && sender == rank_;
  frames_.push_back({.offset = static_cast<std::uint64_t>(offset),
                     .numel = static_cast<std::uint64_t>(s.numel),
                     .payload_bytes = bytes,
                     .first_segment = run.segments,
                     .segments = segments_of(bytes),
                     .sender = static_cast<std::uint32_t>(sender),
                     .chunk = frame_chunk(chunk, leg),
                     .codec = static_cast<std::uint32_t>(reduction_.codec().facts().id),
                     .first_tile = made ? of.own.first : 0,
                     .tiles = made ? of.own.count : 0});
  ++run.count;
  run.segments += frames_.back().segments;
}

kernels::Slot SlotTables::slot_of(const Shape& shape, const Scratch& scratch, std::int64_t frame,
                                  Leg leg, std::uint64_t bytes, std::uint64_t first_tile) const {
  const std::size_t prefix =
      leg == Leg::kScatter ? sizeof(kernels::SlotPrefix) : sizeof(kernels::MeanPrefix);
  const auto at = [this](std::int64_t offset) { return scratch_at_ + offset; };
  return {
      .payload = workspace_at_ + frame + kFrameHeaderBytes + prefix,
      .bytes = bytes - prefix,
      .parts = static_cast<const kernels::SlotPart*>(parts_.const_data_ptr()) + shape.first_part,
      .count = shape.parts,
      .tiles = shape.tiles,
      .first_tile = first_tile,
      .read = reinterpret_cast<kernels::ReadPart*>(at(scratch.read)),
      .symbols = reinterpret_cast<std::uint8_t*>(at(scratch.symbols)),
      .before = reinterpret_cast<std::uint32_t*>(at(scratch.before)),
      .excess = reinterpret_cast<std::uint32_t*>(at(scratch.excess)),
      .state = reinterpret_cast<kernels::ReadState*>(at(scratch.state))};
}

kernels::SlotCode SlotTables::code_of(const Shape& shape, const kernels::Slot& slot) const {
  const auto at = [this](std::int64_t offset) { return scratch_at_ + offset; };
  return {
      .slot = slot,
      .numel = shape.numel,
      .coded = reinterpret_cast<kernels::CodedPart*>(at(shape.codes.coded)),
      .groups = reinterpret_cast<kernels::CodedGroup*>(at(shape.codes.groups)),
      .sample = shape.sample_numel > 0 ? reinterpret_cast<float*>(at(shape.codes.sample)) : nullptr,
      .sampled =
          static_cast<const kernels::SampledPart*>(sampled_.const_data_ptr()) + shape.first_part,
      .sample_tiles = shape.sample_tiles,
      .sample_numel = shape.sample_numel,
      .received = nullptr};
}

void SlotTables::fill_slots(int index) {
  SlotChunk& chunk = chunks_[static_cast<std::size_t>(index)];
  const auto bytes_of = [&](int owner, Leg leg) {
    return slot_bytes_[static_cast<std::size_t>(index)][static_cast<std::size_t>(owner)]
                      [static_cast<std::size_t>(leg)];
  };
  chunk.first_write = static_cast<std::uint32_t>(slots_.size());
  chunk.sent = chunk.reduced = {};
  std::int64_t sent = chunk.sent_at;
  for (int owner = 0; owner < world_; ++owner) {
    const Shape& of = shape(index, owner);
    if (of.numel > 0) {
      slots_.push_back(slot_of(of, of.codes, sent, Leg::kScatter, bytes_of(owner, Leg::kScatter),
                               of.first_tile));
      add_frame(chunk.sent, index, owner, sent, rank_, Leg::kScatter);
    }
    sent += chunk.sent_sizes[static_cast<std::size_t>(owner)];
  }
  const Shape& own = shape(index, rank_);
  if (own.numel == 0) return;
  const auto* own_parts =
      static_cast<const kernels::SlotPart*>(own_parts_.const_data_ptr()) + own.own_part;
  chunk.mean = static_cast<std::uint32_t>(slots_.size());
  slots_.push_back(slot_of(own, own.codes, chunk.made_at, Leg::kGather,
                           bytes_of(rank_, Leg::kGather), own.first_tile));
  slots_.back().parts = own_parts;
  chunk.first_received = static_cast<std::uint32_t>(slots_.size());
  for (int r = 0; r < world_; ++r) {
    const std::int64_t frame = chunk.received_at + r * chunk.own_size;
    slots_.push_back(slot_of(own, own.received[static_cast<std::size_t>(r)], frame, Leg::kScatter,
                             bytes_of(rank_, Leg::kScatter), own.first_tile));
    slots_.back().parts = own_parts;
    add_frame(chunk.reduced, index, rank_, frame, r, Leg::kScatter);
  }
  add_frame(chunk.reduced, index, rank_, chunk.made_at, rank_, Leg::kGather);
}

void SlotTables::fill(std::byte* workspace, std::byte* scratch) {
  workspace_at_ = workspace;
  scratch_at_ = scratch;
  slots_.clear();
  frames_.clear();
  codes_.clear();
  for (std::size_t c = 0; c < chunks_.size(); ++c) fill_slots(static_cast<int>(c));
  means_ = {};
  for (std::size_t c = 0; c < chunks_.size(); ++c) {
    const SlotChunk& chunk = chunks_[c];
    for (int owner = 0; owner < world_; ++owner) {
      const Shape& of = shape(static_cast<int>(c), owner);
      if (of.numel == 0) continue;
      const std::int64_t frame = chunk.arrived_at + owner * chunk.mean_size;
      slots_.push_back(slot_of(of, of.mean, frame, Leg::kGather,
                               slot_bytes_[c][static_cast<std::size_t>(owner)][kToAll],
                               of.first_tile));
      add_frame(means_, static_cast<int>(c), owner, frame, owner, Leg::kGather);
    }
  }
  for (std::size_t c = 0; c < chunks_.size(); ++c) {
    const SlotChunk& chunk = chunks_[c];
    std::uint32_t at = chunk.first_write;
    for (const Shape& of : shapes_[c]) {
      if (of.numel > 0) codes_.push_back(code_of(of, slots_[at++]));
    }
    const Shape& own = shape(static_cast<int>(c), rank_);
    if (own.numel == 0) continue;
    codes_.push_back(code_of(own, slots_[chunk.mean]));
    codes_.back().received = slots(chunk.first_received);
  }
  if (copied_ && !copied_->query()) copied_->synchronize();
  auto* at = static_cast<std::byte*>(pinned_.mutable_data_ptr());
  const auto add = [&at](const auto& list) {
    const std::size_t bytes = list.size() * sizeof(list[0]);
    std::memcpy(at, list.data(), bytes);
    at += bytes;
  };
  add(codes_);
  add(slots_);
  add(frames_);
  THINWIRE_ASSERT(at == static_cast<std::byte*>(pinned_.mutable_data_ptr()) + pinned_.numel());
  made_.copy_(pinned_, /*non_blocking=*/true);
  if (!copied_) copied_.emplace(made_.device().type());
  copied_->record(stream_of(made_.device()));
}

const kernels::DevicePiece* SlotTables::pieces() const {
  return static_cast<const kernels::DevicePiece*>(pieces_.const_data_ptr());
}

const kernels::LayerTiles* SlotTables::layers() const {
  return static_cast<const kernels::LayerTiles*>(layers_.const_data_ptr());
}

const kernels::SlotCode* SlotTables::codes(std::uint32_t first) const {
  return static_cast<const kernels::SlotCode*>(made_.const_data_ptr()) + first;
}

const kernels::Slot* SlotTables::slots(std::uint32_t first) const {
  return reinterpret_cast<const kernels::Slot*>(codes(codes_total_)) + first;
}

const kernels::DeviceFrame* SlotTables::frames(const FrameRun& run) const {
  return reinterpret_cast<const kernels::DeviceFrame*>(slots(slots_total_)) + run.first;
}

const kernels::ReadState* SlotTables::states_of_received(const SlotChunk& chunk) const {
  const auto index = static_cast<std::size_t>(&chunk - chunks_.data());
  return reinterpret_cast<const kernels::ReadState*>(scratch_at_ + received_states_[index]);
}

const kernels::ReadState* SlotTables::states_of_means() const {
  return reinterpret_cast<const kernels::ReadState*>(scratch_at_ + mean_states_);
}

kernels::MeanPrefix* SlotTables::report_memory() const {
  return data_of<kernels::MeanPrefix>(report_);
}

void SlotTables::report() {
  pinned_report_.copy_(report_, /*non_blocking=*/true);
  if (!report_copied_) report_copied_.emplace(report_.device().type());
  report_copied_->record(stream_of(report_.device()));
  reported_ = true;
}

void SlotTables::learn() {
  if (!std::exchange(reported_, false)) return;
  if (!report_copied_->query()) report_copied_->synchronize();
  const auto* at = static_cast<const std::byte*>(pinned_report_.const_data_ptr());
  kernels::ExchangeWords words;
  std::memcpy(&words, at + mean_slots_ * sizeof(kernels::MeanPrefix), sizeof words);
  if (words.refused != 0 || words.not_finite != 0) return;
  std::vector<MeanPrefix> prefixes;
  for (const std::vector<Slice>& owners : slices_) {
    for (const Slice& s : owners) {
      MeanPrefix& prefix = prefixes.emplace_back();
      if (s.numel == 0) continue;
      std::memcpy(&prefix, at, sizeof prefix);
      at += sizeof prefix;
    }
  }
  steps_.report(shared_, group_, report_of(prefixes, slices_));
}

}  // namespace thinwire::comm
