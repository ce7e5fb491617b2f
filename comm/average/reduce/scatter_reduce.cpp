#include "thinwire/comm/average/reduce/scatter_reduce.h"

#include <algorithm>

#include "thinwire/comm/average/reduce/scatter_frames.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {
namespace {

// What the frame of `slice_header`'s slice must say when `sender` sends it on a leg of a chunk.
FrameHeader header_of(FrameHeader slice_header, const ReductionContext& context, int chunk, Leg leg,
                      int sender) {
  slice_header.sender = static_cast<std::uint32_t>(context.peers->group_rank(sender));
  slice_header.chunk = frame_chunk(chunk, leg);
  slice_header.layout = context.layout;
  slice_header.sequence = context.sequence;
  return slice_header;
}

// Calls visit(piece, begin of its payload, index of its first element in the slice).
template <typename Visit>
void for_each_piece(const Slice& slice, const Visit& visit) {
  std::size_t byte = 0;
  std::size_t element = 0;
  for (const Piece& piece : slice.pieces) {
    visit(piece, byte, element);
    byte += piece.bytes;
    element += static_cast<std::size_t>(piece.numel);
  }
}

std::span<float> part_of(std::span<float> values, std::size_t begin, const Piece& piece) {
  return values.subspan(begin, static_cast<std::size_t>(piece.numel));
}

}  // namespace

struct ScatterReduce::Chunk {
  Messages scatter_out, scatter_in, gather_out, gather_in;
  std::span<std::byte> own = {};         // payload of this rank's own slice
  std::span<float> sums = {};            // of the own slice; then what encoding its mean lost
  std::vector<FrameHeader> slices = {};  // by owner, see header_of()
  c10::intrusive_ptr<c10d::Work> scatter = {}, gather = {};
  int refused_rank = -1;  // whose frame of the scatter leg did not fit
  bool finite = true;     // the mean of the own slice
};

ScatterReduce::ScatterReduce(std::span<const PartitionLayer> layers, const Peers& peers, int chunks,
                             std::int64_t piece)
    : rank_(peers.rank()),
      world_(peers.size()),
      partition_(Partition::in_chunks(layers, peers.size(), chunks, piece)) {
  for (int c = 0; c < partition_.chunks(); ++c) {
    const Slice& own = partition_.slice(c, rank_);
    std::vector<std::int64_t> of_owner, mine;
    for (int r = 0; r < world_; ++r) {
      const auto theirs = static_cast<std::int64_t>(partition_.slice(c, r).frame_bytes());
      of_owner.push_back(r == rank_ ? 0 : theirs);
      mine.push_back(r == rank_ ? 0 : static_cast<std::int64_t>(own.frame_bytes()));
    }
    chunks_.push_back(std::make_unique<Chunk>(Chunk{.scatter_out = Messages(of_owner),
                                                    .scatter_in = Messages(mine),
                                                    .gather_out = Messages(mine),
                                                    .gather_in = Messages(of_owner)}));
  }
}

ScatterReduce::~ScatterReduce() = default;

// Places for all messages, and for the sums: of each chunk where what its mean loses is kept until
// the step is known to count, else one that the chunks use in turn.
void ScatterReduce::place() {
  Arena& arena = context_.workspace->arena;
  const bool keeps_losses = std::ranges::any_of(
      layers_, [](const LayerValues& layer) { return layer.second != nullptr; });
  std::size_t largest = 0;
  for (int c = 0; c < partition_.chunks(); ++c) {
    Chunk& chunk = *chunks_[static_cast<std::size_t>(c)];
    const Slice& own = partition_.slice(c, rank_);
    for (Messages* messages :
         {&chunk.scatter_out, &chunk.scatter_in, &chunk.gather_out, &chunk.gather_in}) {
      messages->place(arena);
    }
    chunk.own = arena.bytes(own.payload_bytes);
    const auto numel = static_cast<std::size_t>(own.numel);
    largest = std::max(largest, numel);
    if (keeps_losses) chunk.sums = arena.floats(numel);
  }
  if (keeps_losses) return;
  const std::span<float> shared = arena.floats(largest);
  for (int c = 0; c < partition_.chunks(); ++c) {
    chunks_[static_cast<std::size_t>(c)]->sums =
        shared.first(static_cast<std::size_t>(partition_.slice(c, rank_).numel));
  }
}

// All ranks post their collectives in this order. Everything is encoded before anything is waited
// for, so that the network has something to do from the first chunk to the last mean; what does not
// travel comes last.
void ScatterReduce::begin() {
  finite_ = true;
  heard_ = 0;
  keeps_residuals_ = std::ranges::any_of(layers_, &LayerValues::holds_residual);
  // Where a residual lies where the mean will be, no mean is written before it is known that all of
  // them are finite. So that this is known early, every frame of an owner tells it of all its
  // means; a hook's exchanges take too long to wait for them all.
  tells_all_ = keeps_residuals_ && !sums_hook_;
  place();
  for (int c = 0; c < partition_.chunks(); ++c) send_slices(c);
  PhaseSpan span(context_, Phase::kCompress);
  for (int c = 0; c < partition_.chunks(); ++c) {
    encode_slice(partition_.slice(c, rank_), chunks_[static_cast<std::size_t>(c)]->own);
  }
}

void ScatterReduce::advance() {
  const int chunks = partition_.chunks();
  for (int c = 0; c < chunks; ++c) {
    reduce_own_slice(c);
    if (!tells_all_) send_mean(c);
  }
  for (int c = 0; c < chunks && tells_all_; ++c) send_mean(c);
}

// Chunks are heard in order: all of them, or as many as it takes to hear every owner.
Averaged ScatterReduce::receive() {
  if (!keeps_residuals_) {
    for (int c = 0; c < partition_.chunks(); ++c) {
      if (!hear(c)) continue;
      write_own_mean(c, /*keep=*/false);
      write_other_means(c, /*keep=*/false);
    }
  } else {
    while (heard_ < chunks_to_hear() || (heard_ < partition_.chunks() && context_.refusal->any())) {
      hear(heard_);
    }
  }
  Averaged averaged{.finite = finite_};
  if (context_.peers->alone()) return averaged;
  for (const auto& chunk : chunks_) {
    averaged.sent += chunk->scatter_out.bytes() + chunk->gather_out.bytes();
    averaged.means += chunk->gather_out.bytes();
  }
  return averaged;
}

// Where an owner's first frame tells of all its means, those are enough.
int ScatterReduce::chunks_to_hear() const {
  if (!tells_all_) return partition_.chunks();
  return chunks_of_first_frames(partition_.chunks(), world_, rank_, [this](int c, int owner) {
    return partition_.slice(c, owner).numel;
  });
}

void ScatterReduce::send_slices(int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  if (chunk.slices.empty()) {
    const auto codec_of = [this](std::size_t layer) -> const Codec& {
      return *layers_[layer].codec;
    };
    for (int owner = 0; owner < world_; ++owner) {
      const Slice& slice = partition_.slice(index, owner);
      chunk.slices.push_back({.codec_id = codec_id_of(slice, codec_of),
                              .numel = static_cast<std::uint64_t>(slice.numel),
                              .payload_bytes = slice.payload_bytes});
    }
  }
  if (context_.peers->alone()) return;
  {
    PhaseSpan span(context_, Phase::kCompress);
    for (int owner = 0; owner < world_; ++owner) {
      const Slice& slice = partition_.slice(index, owner);
      if (slice.numel == 0 || owner == rank_) continue;
      const auto frame = chunk.scatter_out.of(owner);
      const auto payload = frame.subspan(kFrameHeaderBytes);
      encode_slice(slice, payload);
      write_frame_header(header_of(chunk.slices[static_cast<std::size_t>(owner)], context_, index,
                                   Leg::kScatter, rank_),
                         payload, frame);
    }
  }
  chunk.scatter = context_.peers->all_to_all(chunk.scatter_in, chunk.scatter_out);
}

void ScatterReduce::encode_slice(const Slice& slice, std::span<std::byte> payload) {
  for_each_piece(slice, [&](const Piece& piece, std::size_t byte, std::size_t) {
    encode_piece(context_, layers_[piece.layer], piece.begin, piece.numel,
                 payload.subspan(byte, piece.bytes));
  });
}

void ScatterReduce::reduce_own_slice(int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  if (!context_.peers->alone()) {
    PhaseSpan span(context_, Phase::kExchange,
                   static_cast<std::int64_t>(chunk.scatter_out.bytes()));
    wait(context_.peers->group(), chunk.scatter, "scatter_reduce", context_.sequence);
  }
  const bool accepted = accepts_own_slice(index) && add_up(index);
  // Even with sums that mean nothing: other ranks take part in what it exchanges.
  if (sums_hook_) sums_hook_(context_, index, chunk.sums);
  if (accepted) encode_mean(index);
}

// Checks the frames of the own slice; notes the first that does not fit.
bool ScatterReduce::accepts_own_slice(int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  chunk.refused_rank = -1;
  const FrameHeader& own = chunk.slices[static_cast<std::size_t>(rank_)];
  if (own.numel == 0) return true;
  for (int r = 0; r < world_; ++r) {
    if (r == rank_) continue;
    const auto frame = chunk.scatter_in.of(r);
    try {
      verify_frame(read_frame_header(frame), header_of(own, context_, index, Leg::kScatter, r),
                   frame.subspan(kFrameHeaderBytes));
    } catch (const FrameError& error) {
      chunk.refused_rank = context_.peers->group_rank(r);
      context_.refusal->note(chunk.refused_rank, error);
      return false;
    }
  }
  return true;
}

// The sums of the own slice, in rank order, and what they are divided by while a piece is in cache.
// False if a payload cannot be decoded.
bool ScatterReduce::add_up(int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  PhaseSpan span(context_, Phase::kDecompress);
  int r = 0;
  try {
    for_each_piece(partition_.slice(index, rank_), [&](const Piece& piece, std::size_t byte,
                                                       std::size_t element) {
      const LayerValues& layer = layers_[piece.layer];
      const auto sums = part_of(chunk.sums, element, piece);
      for (r = 0; r < world_; ++r) {
        const auto payload = r == rank_ ? std::span<const std::byte>(chunk.own)
                                        : chunk.scatter_in.of(r).subspan(kFrameHeaderBytes);
        layer.codec->decompress(payload.subspan(byte, piece.bytes),
                                random_key(context_, layer, r, /*stage=*/0, piece.begin),
                                view_of(sums),
                                r == 0 ? WriteMode::kAssign : WriteMode::kAccumulate);
      }
      // The one place where a scatter-reduced gradient is divided by the number of ranks.
      if (!sums_hook_) kernels::divide(sums, static_cast<float>(context_.divisor));
    });
  } catch (const FrameError& error) {
    chunk.refused_rank = context_.peers->group_rank(r);
    context_.refusal->note(chunk.refused_rank, error);
    return false;
  }
  return true;
}

// Leaves in the sums what the encoding loses, where anybody asks for it.
void ScatterReduce::encode_mean(int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  PhaseSpan span(context_, Phase::kCompress);
  chunk.finite = true;
  // The sums are all that is left of what this rank had for itself.
  if (const auto frame = mean_frame(chunk); !frame.empty()) {
    chunk.own = frame.subspan(kFrameHeaderBytes);
  }
  for_each_piece(partition_.slice(index, rank_), [&](const Piece& piece, std::size_t byte,
                                                     std::size_t element) {
    const LayerValues& layer = layers_[piece.layer];
    const RandomKey key = random_key(context_, layer, rank_, /*stage=*/1, piece.begin);
    const auto mean = part_of(chunk.sums, element, piece);
    const auto payload = chunk.own.subspan(byte, piece.bytes);
    if (layer.second) {
      const auto kept =
          layer.second->of(layer.name, layer.first_element + piece.begin, piece.numel);
      if (!kept.empty()) kernels::add_scaled(mean.data(), kept.data(), layer.second_decay, mean);
    }
    if (layer.holds_residual()) {
      // What is decoded has no place yet. A difference is finite where both of its terms are.
      if (layer.codec->traits().lossless) {
        layer.codec->compress(view_of(std::span<const float>(mean)), key, payload);
      } else {
        layer.codec->compress_and_subtract(view_of(mean), key, payload);
      }
      chunk.finite = kernels::all_finite(mean) && chunk.finite;
      return;
    }
    const auto decoded = part_of(layer.values, static_cast<std::size_t>(piece.begin), piece);
    layer.codec->compress(view_of(std::span<const float>(mean)), key, payload);
    layer.codec->decompress(payload, key, view_of(decoded), WriteMode::kAssign);
    chunk.finite = kernels::all_finite(decoded) && chunk.finite;
    if (layer.second) kernels::subtract(mean, decoded.data());
  });
  finite_ = finite_ && chunk.finite;
}

// Where the own mean is sent from first; empty where there is nobody to send it to.
std::span<std::byte> ScatterReduce::mean_frame(Chunk& chunk) const {
  const bool sends = world_ > 1 && chunk.slices[static_cast<std::size_t>(rank_)].numel > 0;
  return sends ? chunk.gather_out.of(rank_ == 0 ? 1 : 0) : std::span<std::byte>();
}

void ScatterReduce::send_mean(int index) {
  if (context_.peers->alone()) return;
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  const FrameHeader& own = chunk.slices[static_cast<std::size_t>(rank_)];
  if (const auto first = mean_frame(chunk); !first.empty()) {
    FrameHeader header = header_of(own, context_, index, Leg::kGather, rank_);
    const bool finite = tells_all_ ? finite_ : chunk.finite;
    if (!finite) header.status = FrameHeader::Status::kNonFinite;
    if (chunk.refused_rank >= 0) {
      header.status = FrameHeader::Status::kPeerFrameInvalid;
      header.blamed_rank = chunk.refused_rank;
    }
    // What was refused was not encoded there.
    const auto payload = first.subspan(kFrameHeaderBytes);
    if (chunk.own.data() != payload.data()) std::ranges::copy(chunk.own, payload.begin());
    write_frame_header(header, payload, first);
    for (int r = 0; r < world_; ++r) {
      const auto frame = chunk.gather_out.of(r);
      if (r != rank_ && frame.data() != first.data()) std::ranges::copy(first, frame.begin());
    }
  }
  chunk.gather = context_.peers->all_to_all(chunk.gather_in, chunk.gather_out);
}

// Waits for a chunk's means and checks their frames. Whether all of them can be decoded.
bool ScatterReduce::hear(int index) {
  heard_ = index + 1;
  if (context_.peers->alone()) return true;
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  {
    PhaseSpan span(context_, Phase::kExchange, static_cast<std::int64_t>(chunk.gather_out.bytes()));
    wait(context_.peers->group(), chunk.gather, "scatter_reduce", context_.sequence);
  }
  bool all = true;
  for (int owner = 0; owner < world_; ++owner) {
    if (owner == rank_ || partition_.slice(index, owner).numel == 0) continue;
    const int sender = context_.peers->group_rank(owner);
    const auto frame = chunk.gather_in.of(owner);
    try {
      const FrameHeader found = read_frame_header(frame);
      if (!holds_payload(found.status)) {
        context_.refusal->note_second_hand(sender, found.blamed_rank);
        all = false;
        continue;
      }
      verify_frame(found,
                   header_of(chunk.slices[static_cast<std::size_t>(owner)], context_, index,
                             Leg::kGather, owner),
                   frame.subspan(kFrameHeaderBytes));
      finite_ = finite_ && found.status == FrameHeader::Status::kOk;
    } catch (const FrameError& error) {
      context_.refusal->note(sender, error);
      all = false;
    }
  }
  return all;
}

// Writes the mean of an owner's slice, which has come. A piece is in cache from its residual, which
// makes room with `keep`, to its mean.
void ScatterReduce::write_mean(int index, int owner, bool keep) {
  if (partition_.slice(index, owner).numel == 0) return;
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  const bool own = owner == rank_;
  const auto payload = own ? std::span<const std::byte>(chunk.own)
                           : chunk.gather_in.of(owner).subspan(kFrameHeaderBytes);
  try {
    decode(index, owner, payload, [&](const LayerValues& layer, const Piece& piece) {
      if (layer.holds_residual()) {
        if (keep) keep_residual(layer, piece.begin, piece.numel);
        return true;
      }
      return !own;  // encode_mean() has written the own ones
    });
  } catch (const FrameError& error) {
    context_.refusal->note(context_.peers->group_rank(owner), error);
  }
}

void ScatterReduce::write_own_mean(int index, bool keep) {
  PhaseSpan span(context_, Phase::kDecompress);
  write_mean(index, rank_, keep);
}

void ScatterReduce::write_other_means(int index, bool keep) {
  if (world_ == 1) return;
  PhaseSpan span(context_, Phase::kDecompress);
  for (int owner = 0; owner < world_; ++owner) {
    if (owner != rank_) write_mean(index, owner, keep);
  }
}

// Writes an owner's means, piece by piece, where `wanted(layer, piece)`.
template <typename Wanted>
void ScatterReduce::decode(int index, int owner, std::span<const std::byte> payload,
                           const Wanted& wanted) {
  for_each_piece(
      partition_.slice(index, owner), [&](const Piece& piece, std::size_t byte, std::size_t) {
        const LayerValues& layer = layers_[piece.layer];
        if (!wanted(layer, piece)) return;
        const auto begin = static_cast<std::size_t>(piece.begin);
        layer.codec->decompress(payload.subspan(byte, piece.bytes),
                                random_key(context_, layer, owner, /*stage=*/1, piece.begin),
                                view_of(part_of(layer.values, begin, piece)), WriteMode::kAssign);
      });
}

// What takes no message is done before it is waited for one.
void ScatterReduce::deliver(bool keep) {
  for (int c = 0; c < partition_.chunks() && keeps_residuals_; ++c) {
    if (keep) keep_second(c);
    if (!context_.refusal->any()) write_own_mean(c, keep);
    // A frame that is refused only now ends the exchange, like one of those before.
    const bool whole = c < heard_ || hear(c);
    if (whole && !context_.refusal->any()) write_other_means(c, keep);
  }
  second_kept_ = keep && keeps_residuals_;
  release();
}

void ScatterReduce::commit() {
  for (int c = 0; c < partition_.chunks() && !second_kept_; ++c) keep_second(c);
}

// Moves what the own means of a chunk have lost to where the next means find it.
void ScatterReduce::keep_second(int index) {
  const Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  for_each_piece(partition_.slice(index, rank_),
                 [&](const Piece& piece, std::size_t, std::size_t element) {
                   const LayerValues& layer = layers_[piece.layer];
                   if (!layer.second) return;
                   layer.second->store(layer.name, layer.first_element + piece.begin,
                                       part_of(chunk.sums, element, piece));
                 });
}

// The messages' memory belongs to the next bucket.
void ScatterReduce::release() {
  for (const auto& chunk : chunks_) {
    for (Messages* messages :
         {&chunk->scatter_out, &chunk->scatter_in, &chunk->gather_out, &chunk->gather_in}) {
      messages->release();
    }
    chunk->scatter = chunk->gather = {};
  }
}

std::size_t ScatterReduce::bytes() const {
  std::size_t bytes = 0;
  for (int c = 0; c < partition_.chunks(); ++c) {
    for (int owner = 0; owner < world_; ++owner) {
      bytes += sizeof(Slice) + partition_.slice(c, owner).pieces.capacity() * sizeof(Piece);
    }
  }
  return bytes;
}

std::vector<Piece> ScatterReduce::owned() const {
  std::vector<Piece> pieces;
  for (int c = 0; c < partition_.chunks(); ++c) {
    const Slice& slice = partition_.slice(c, rank_);
    pieces.insert(pieces.end(), slice.pieces.begin(), slice.pieces.end());
  }
  return pieces;
}

}  // namespace thinwire::comm
