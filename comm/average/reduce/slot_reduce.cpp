#include "thinwire/comm/average/reduce/slot_reduce.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "thinwire/comm/average/reduce/scatter_frames.h"
#include "thinwire/comm/average/reduce/slot_coding.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/fixed_log.h"
#include "thinwire/compressors/entropy/rate_model.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {
namespace {

using entropy::Apply;

// Calls visit(index of the piece, piece, index of its first element in the slice).
template <typename Visit>
void for_each_slot_piece(const Slice& slice, const Visit& visit) {
  std::size_t element = 0;
  for (std::size_t p = 0; p < slice.pieces.size(); ++p) {
    visit(p, slice.pieces[p], element);
    element += static_cast<std::size_t>(slice.pieces[p].numel);
  }
}

std::span<float> slot_part(std::span<float> values, std::size_t begin, const Piece& piece) {
  return values.subspan(begin, static_cast<std::size_t>(piece.numel));
}

// What the frame of an owner's slice says when `sender` sends it.
FrameHeader slot_header(const Codec& codec, const ReductionContext& context, const Slice& slice,
                        int chunk, std::size_t leg, int sender, std::size_t slot_bytes) {
  return {.codec_id = static_cast<std::uint16_t>(codec.facts().id),
          .sender = static_cast<std::uint32_t>(context.peers->group_rank(sender)),
          .chunk = frame_chunk(chunk, static_cast<Leg>(leg)),
          .layout = context.layout,
          .sequence = context.sequence,
          .numel = static_cast<std::uint64_t>(slice.numel),
          .payload_bytes = slot_bytes};
}

std::vector<std::vector<Slice>> slices_of(std::span<const PartitionLayer> layers, int world,
                                          int chunks) {
  std::vector<std::int64_t> sizes;
  for (const PartitionLayer& layer : layers) {
    THINWIRE_ASSERT(layer.codec->spec() == layers[0].codec->spec());
    sizes.push_back(layer.numel);
  }
  return owner_slices(sizes, world, chunks);
}

}  // namespace

struct SlotReduce::Chunk {
  std::optional<Messages> out[2], in[2];  // by leg
  c10::intrusive_ptr<c10d::Work> work[2];
  std::span<std::byte> own[2];  // slots of this rank's own slice
  std::span<float> sums;        // of the own slice, then what encoding their mean lost
  int refused_rank = -1;        // whose slot this rank did not take
  bool finite = true;           // the mean of the own slice
  SlotPrefix slices;            // averages over the ranks of the slots of the own slice
  double log2_step = 0;
};

SlotReduce::SlotReduce(std::span<const PartitionLayer> layers, const Peers& peers, int chunks,
                       SharedSteps& steps)
    : SlotReduce(slices_of(layers, peers.size(), chunks), *layers[0].codec, peers, steps,
                 layers[0].codec->spec()) {}

SlotReduce::SlotReduce(std::vector<std::vector<Slice>> slices, const Codec& codec,
                       const Peers& peers, SharedSteps& steps, std::string shared)
    : rank_(peers.rank()),
      world_(peers.size()),
      codec_(codec),
      options_(*ecsq_options(codec_)),
      shared_(std::move(shared)),
      steps_(steps),
      slices_(std::move(slices)) {
  for (const std::vector<Slice>& owners : slices_) {
    chunks_.push_back(std::make_unique<Chunk>());
    for (const Slice& s : owners) numel_ += s.numel;
  }
}

SlotReduce::~SlotReduce() = default;

std::size_t SlotReduce::slot_bytes(int chunk, int owner, std::size_t leg) const {
  return slot_bytes_of(slice(chunk, owner), use_, leg, place_of(chunk, owner));
}

// Places for all messages, whose sizes are those of this exchange.
void SlotReduce::place() {
  Arena& arena = context_.workspace->arena;
  for (std::size_t c = 0; c < chunks_.size(); ++c) {
    Chunk& chunk = *chunks_[c];
    const int index = static_cast<int>(c);
    for (const std::size_t leg : {kToOwners, kToAll}) {
      std::vector<std::int64_t> of_owner, mine;
      const auto frame = [&](int owner) {
        const std::size_t slot = slot_bytes(index, owner, leg);
        return static_cast<std::int64_t>(slot == 0 ? 0 : kFrameHeaderBytes + slot);
      };
      for (int r = 0; r < world_; ++r) {
        of_owner.push_back(r == rank_ ? 0 : frame(r));
        mine.push_back(r == rank_ ? 0 : frame(rank_));
      }
      chunk.out[leg].emplace(leg == kToOwners ? of_owner : mine);
      chunk.in[leg].emplace(leg == kToOwners ? mine : of_owner);
      chunk.out[leg]->place(arena);
      chunk.in[leg]->place(arena);
      chunk.own[leg] = arena.bytes(slot_bytes(index, rank_, leg));
    }
    chunk.sums = arena.floats(static_cast<std::size_t>(slice(index, rank_).numel));
    chunk.refused_rank = -1;
    chunk.finite = true;
  }
}

SharedSteps::Use SlotReduce::use_of_steps(const std::string& group, std::int64_t step) const {
  SharedSteps::Use use = steps_.use(shared_, options_, group, numel_, step);
  // Of a job of another size, or of pieces of another.
  const std::size_t places = slices_.size() * static_cast<std::size_t>(world_);
  for (std::vector<std::uint32_t>& slots : use.slots) {
    if (slots.size() != places) slots.clear();
  }
  return use;
}

// All ranks post their collectives in the order of ScatterReduce, for its reasons.
void SlotReduce::begin() {
  finite_ = true;
  heard_ = 0;
  keeps_residuals_ = std::ranges::any_of(layers_, &LayerValues::holds_residual);
  begin_ = 1;
  prefixes_.assign(slices_.size() * static_cast<std::size_t>(world_), {});
  group_ = std::string(layers_[0].name);
  use_ = use_of_steps(group_, static_cast<std::int64_t>(context_.step));
  find_steps();
  place();
  for (int c = 0; c < chunks(); ++c) send_slices(c);
}

// Where there is none yet: from this rank's gradient, for both ways.
void SlotReduce::find_steps() {
  if (std::ranges::min(use_.step) > 0) return;
  std::vector<entropy::MagnitudeCounts> classes;
  double allowed = 0;
  for (const LayerValues& layer : layers_) {
    classes.emplace_back(layer.values);
    const std::span<const float> values = layer.values;
    allowed += allowed_error(options_, std::span(&values, 1),
                             random_key(context_, layer, rank_, /*stage=*/0, 0));
  }
  const double rounding = options_.rounding();
  float step = 0;
  if (aims_at_error(options_)) {
    if (std::isfinite(allowed)) step = entropy::step_for_error(classes, allowed, rounding);
  } else {
    step = entropy::step_for_bits(classes, use_.slot_bits[kToOwners] * static_cast<double>(numel_),
                                  rounding);
  }
  std::ranges::replace(use_.step, 0.0f, step);
}

void SlotReduce::advance() {
  for (int c = 0; c < chunks(); ++c) {
    reduce_own_slice(c);
    if (!keeps_residuals_) send_mean(c);
  }
  for (int c = 0; c < chunks() && keeps_residuals_; ++c) send_mean(c);
}

Averaged SlotReduce::receive() {
  if (!keeps_residuals_) {
    for (int c = 0; c < chunks(); ++c) {
      if (hear(c)) write_means(c, /*keep=*/false);
    }
  } else {
    const int needed = chunks_of_first_frames(
        chunks(), world_, rank_, [this](int c, int owner) { return slice(c, owner).numel; });
    while (heard_ < needed || (heard_ < chunks() && context_.refusal->any())) hear(heard_);
  }
  Averaged averaged{.finite = finite_};
  if (context_.peers->alone()) return averaged;
  for (const auto& chunk : chunks_) {
    averaged.sent += chunk->out[kToOwners]->bytes() + chunk->out[kToAll]->bytes();
    averaged.means += chunk->out[kToAll]->bytes();
  }
  return averaged;
}

void SlotReduce::send_slices(int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  {
    PhaseSpan span(context_, Phase::kCompress);
    SlotCoders& coders = slot_coders();
    // All of a chunk begin alike, so that they can be encoded side by side.
    float used = begin_;
    for (int owner = 0; owner < world_; ++owner) {
      const Slice& s = slice(index, owner);
      if (s.numel == 0) continue;
      coders.parts.clear();
      for (const Piece& piece : s.pieces) {
        const LayerValues& layer = layers_[piece.layer];
        const auto begin = static_cast<std::size_t>(piece.begin);
        if (layer.residual.empty()) {
          THINWIRE_ASSERT(layer.carried.empty());
          coders.parts.push_back(slot_part(layer.values, begin, piece));
          continue;
        }
        const std::span<float> rest = slot_part(layer.residual, begin, piece);
        add_carried(layer, piece.begin, rest);
        coders.parts.push_back(rest);
      }
      const auto frame = owner == rank_ ? std::span<std::byte>() : chunk.out[kToOwners]->of(owner);
      const auto slot = owner == rank_ ? chunk.own[kToOwners] : frame.subspan(kFrameHeaderBytes);
      const Piece& first = s.pieces.front();
      used = begin_;
      const SlotPrefix prefix =
          fill_slot(options_, use_.step[kToOwners],
                    random_key(context_, layers_[first.layer], rank_, /*stage=*/0, first.begin),
                    slot.subspan(sizeof(SlotPrefix)), &used);
      std::memcpy(slot.data(), &prefix, sizeof prefix);
      for_each_slot_piece(s, [&](std::size_t p, const Piece& piece, std::size_t) {
        const LayerValues& layer = layers_[piece.layer];
        if (layer.residual.empty()) return;
        const auto rest = slot_part(layer.residual, static_cast<std::size_t>(piece.begin), piece);
        coders.codes.apply(p, Apply::kSubtract, rest);
        note_residual(layer, rest);
      });
      if (owner == rank_) continue;
      write_frame_header(slot_header(codec_, context_, s, index, kToOwners, rank_, slot.size()),
                         slot, frame);
    }
    begin_ = used;
  }
  if (!context_.peers->alone()) {
    chunk.work[kToOwners] = context_.peers->all_to_all(*chunk.in[kToOwners], *chunk.out[kToOwners]);
  }
}

void SlotReduce::reduce_own_slice(int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  if (!context_.peers->alone()) {
    PhaseSpan span(context_, Phase::kExchange,
                   static_cast<std::int64_t>(chunk.out[kToOwners]->bytes()));
    wait(context_.peers->group(), chunk.work[kToOwners], "slot_reduce", context_.sequence);
  }
  if (!add_up(index)) return;
  // The one place where a gradient in slots is divided by the number of ranks.
  kernels::divide(chunk.sums, static_cast<float>(context_.divisor));
  encode_mean(index);
}

// The sums of the own slice, in rank order. False if a slot does not fit or cannot be decoded.
bool SlotReduce::add_up(int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  const Slice& own = slice(index, rank_);
  if (own.numel == 0) return true;
  PhaseSpan span(context_, Phase::kDecompress);
  double wanted = 0, lost = 0, allowed = 0, log2_step = 0;
  int with_step = 0;
  for (int r = 0; r < world_; ++r) {
    try {
      std::span<const std::byte> slot = chunk.own[kToOwners];
      if (r != rank_) {
        const auto frame = chunk.in[kToOwners]->of(r);
        slot = frame.subspan(kFrameHeaderBytes);
        verify_frame(read_frame_header(frame),
                     slot_header(codec_, context_, own, index, kToOwners, r, slot.size()), slot);
      }
      SlotPrefix prefix;
      std::memcpy(&prefix, slot.data(), sizeof prefix);
      const entropy::StepCodes& codes = read_slot(slot.subspan(sizeof prefix), own);
      for_each_slot_piece(own, [&](std::size_t p, const Piece& piece, std::size_t element) {
        codes.apply(p, r == 0 ? Apply::kAssign : Apply::kAdd,
                    slot_part(chunk.sums, element, piece));
      });
      wanted += prefix.wanted_bytes;
      lost += double{prefix.lost} * prefix.lost;
      allowed += double{prefix.allowed} * prefix.allowed;
      if (!(codes.step() > 0)) continue;
      log2_step += entropy::log2_of(codes.step());
      ++with_step;
    } catch (const FrameError& refused) {
      chunk.refused_rank = context_.peers->group_rank(r);
      context_.refusal->note(chunk.refused_rank, refused);
      return false;
    }
  }
  chunk.slices = {.wanted_bytes = static_cast<std::uint32_t>(wanted / world_),
                  .lost = static_cast<float>(std::sqrt(lost)),
                  .allowed = static_cast<float>(std::sqrt(allowed))};
  chunk.log2_step = with_step > 0 ? log2_step / with_step : kNoStep;
  return true;
}

// Leaves in the sums what the encoding loses.
void SlotReduce::encode_mean(int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  const Slice& own = slice(index, rank_);
  if (own.numel == 0) return;
  PhaseSpan span(context_, Phase::kCompress);
  SlotCoders& coders = slot_coders();
  coders.parts.clear();
  for_each_slot_piece(own, [&](std::size_t, const Piece& piece, std::size_t element) {
    const LayerValues& layer = layers_[piece.layer];
    const auto mean = slot_part(chunk.sums, element, piece);
    if (layer.second) {
      const auto kept =
          layer.second->of(layer.name, layer.first_element + piece.begin, piece.numel);
      if (!kept.empty()) kernels::add_scaled(mean.data(), kept.data(), layer.second_decay, mean);
    }
    coders.parts.push_back(mean);
  });
  const std::span<std::byte> slot = chunk.own[kToAll];
  const Piece& first = own.pieces.front();
  const MeanPrefix prefix{
      .mean = fill_slot(options_, use_.step[kToAll],
                        random_key(context_, layers_[first.layer], rank_, /*stage=*/1, first.begin),
                        slot.subspan(sizeof(MeanPrefix))),
      .slices = chunk.slices,
      .log2_step = static_cast<float>(chunk.log2_step)};
  std::memcpy(slot.data(), &prefix, sizeof prefix);
  for_each_slot_piece(own, [&](std::size_t p, const Piece& piece, std::size_t element) {
    const auto rest = slot_part(chunk.sums, element, piece);
    coders.codes.apply(p, Apply::kSubtract, rest);
    chunk.finite = kernels::all_finite(rest) && chunk.finite;
  });
  finite_ = finite_ && chunk.finite;
  note_taken(index, rank_, slot);
}

void SlotReduce::send_mean(int index) {
  if (context_.peers->alone()) return;
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  const Slice& own = slice(index, rank_);
  if (own.numel > 0 && world_ > 1) {
    const std::span<std::byte> slot = chunk.own[kToAll];
    FrameHeader header = slot_header(codec_, context_, own, index, kToAll, rank_, slot.size());
    const bool finite = keeps_residuals_ ? finite_ : chunk.finite;
    if (!finite) header.status = FrameHeader::Status::kNonFinite;
    if (chunk.refused_rank >= 0) {
      std::ranges::fill(slot, std::byte{0});
      header.status = FrameHeader::Status::kPeerFrameInvalid;
      header.blamed_rank = chunk.refused_rank;
    }
    const auto first = chunk.out[kToAll]->of(rank_ == 0 ? 1 : 0);
    std::ranges::copy(slot, first.begin() + kFrameHeaderBytes);
    write_frame_header(header, slot, first);
    for (int r = 0; r < world_; ++r) {
      const auto frame = chunk.out[kToAll]->of(r);
      if (r != rank_ && frame.data() != first.data()) std::ranges::copy(first, frame.begin());
    }
  }
  chunk.work[kToAll] = context_.peers->all_to_all(*chunk.in[kToAll], *chunk.out[kToAll]);
}

// Waits for a chunk's means and checks their frames. Whether all of them can be decoded.
bool SlotReduce::hear(int index) {
  heard_ = index + 1;
  if (context_.peers->alone()) return true;
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  {
    PhaseSpan span(context_, Phase::kExchange,
                   static_cast<std::int64_t>(chunk.out[kToAll]->bytes()));
    wait(context_.peers->group(), chunk.work[kToAll], "slot_reduce", context_.sequence);
  }
  bool all = true;
  for (int owner = 0; owner < world_; ++owner) {
    const Slice& s = slice(index, owner);
    if (owner == rank_ || s.numel == 0) continue;
    const int sender = context_.peers->group_rank(owner);
    const auto frame = chunk.in[kToAll]->of(owner);
    const auto slot = frame.subspan(kFrameHeaderBytes);
    try {
      const FrameHeader found = read_frame_header(frame);
      if (!holds_payload(found.status)) {
        context_.refusal->note_second_hand(sender, found.blamed_rank);
        all = false;
        continue;
      }
      verify_frame(found, slot_header(codec_, context_, s, index, kToAll, owner, slot.size()),
                   slot);
      finite_ = finite_ && found.status == FrameHeader::Status::kOk;
      note_taken(index, owner, slot);
    } catch (const FrameError& error) {
      context_.refusal->note(sender, error);
      all = false;
    }
  }
  return all;
}

// Prefixes come in another order on each rank; they are added up when all are there.
void SlotReduce::note_taken(int index, int owner, std::span<const std::byte> slot) {
  std::memcpy(&prefixes_[place_of(index, owner)], slot.data(), sizeof(MeanPrefix));
}

// Writes the means of a chunk that was heard. A piece is in cache from its residual, which makes
// room with `keep`, to its mean.
void SlotReduce::write_means(int index, bool keep) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  PhaseSpan span(context_, Phase::kDecompress);
  for (int owner = 0; owner < world_; ++owner) {
    const Slice& s = slice(index, owner);
    if (s.numel == 0) continue;
    const std::span<const std::byte> slot =
        owner == rank_ ? std::span<const std::byte>(chunk.own[kToAll])
                       : chunk.in[kToAll]->of(owner).subspan(kFrameHeaderBytes);
    try {
      const entropy::StepCodes& codes = read_slot(slot.subspan(sizeof(MeanPrefix)), s);
      for_each_slot_piece(s, [&](std::size_t p, const Piece& piece, std::size_t) {
        const LayerValues& layer = layers_[piece.layer];
        if (keep && layer.holds_residual()) keep_residual(layer, piece.begin, piece.numel);
        codes.apply(p, Apply::kAssign,
                    slot_part(layer.values, static_cast<std::size_t>(piece.begin), piece));
      });
    } catch (const FrameError& error) {
      context_.refusal->note(context_.peers->group_rank(owner), error);
    }
  }
}

void SlotReduce::deliver(bool keep) {
  for (int c = 0; c < chunks() && keeps_residuals_; ++c) {
    // A frame that is refused only now ends the exchange, like one of those before.
    const bool whole = c < heard_ || hear(c);
    if (whole && !context_.refusal->any()) write_means(c, keep);
  }
  // The messages' memory belongs to the next bucket.
  for (const auto& chunk : chunks_) {
    for (const std::size_t leg : {kToOwners, kToAll}) {
      chunk->out[leg].reset();
      chunk->in[leg].reset();
      chunk->work[leg] = {};
    }
  }
}

void SlotReduce::store_losses() {
  for (std::size_t c = 0; c < chunks_.size(); ++c) {
    for_each_slot_piece(slice(static_cast<int>(c), rank_),
                        [&](std::size_t, const Piece& piece, std::size_t at) {
                          const LayerValues& layer = layers_[piece.layer];
                          if (!layer.second) return;
                          layer.second->store(layer.name, layer.first_element + piece.begin,
                                              slot_part(chunks_[c]->sums, at, piece));
                        });
  }
}

void SlotReduce::report() {
  if (numel_ == 0) return;
  steps_.report(shared_, group_, report_of(prefixes_, slices_));
}

std::size_t SlotReduce::bytes() const {
  std::size_t bytes = 0;
  for (const auto& owners : slices_) {
    for (const Slice& s : owners) bytes += sizeof(Slice) + s.pieces.capacity() * sizeof(Piece);
  }
  return bytes;
}

std::vector<Piece> SlotReduce::owned() const {
  std::vector<Piece> pieces;
  for (const auto& owners : slices_) {
    const Slice& own = owners[static_cast<std::size_t>(rank_)];
    pieces.insert(pieces.end(), own.pieces.begin(), own.pieces.end());
  }
  return pieces;
}

}  // namespace thinwire::comm
