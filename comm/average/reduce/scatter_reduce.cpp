#include "thinwire/comm/average/reduce/scatter_reduce.h"

#include <algorithm>
#include <optional>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {
namespace {

// The two messages of a chunk are told apart by the frame's chunk number.
enum class Leg : std::uint32_t { kScatter = 0, kGather = 1 };

// What the frame of `slice_header`'s slice must say when `sender` sends it on a leg of a chunk.
FrameHeader header_of(FrameHeader slice_header, const ReductionContext& context, int chunk, Leg leg,
                      int sender) {
  slice_header.sender = static_cast<std::uint32_t>(context.peers->group_rank(sender));
  slice_header.chunk = static_cast<std::uint32_t>(2 * chunk) + static_cast<std::uint32_t>(leg);
  slice_header.layout = context.layout;
  slice_header.sequence = context.sequence;
  return slice_header;
}

// The codec's id for frames whose layers all have one codec, else kMixedCodecs.
std::uint16_t codec_id_of(std::span<const LayerValues> layers, const Slice& slice) {
  std::optional<std::uint16_t> id;
  for (const Piece& piece : slice.pieces) {
    const auto next = static_cast<std::uint16_t>(layers[piece.layer].codec->facts().id);
    if (id && *id != next) return kMixedCodecs;
    id = next;
  }
  return id.value_or(kMixedCodecs);
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
  std::vector<std::byte> own = {};       // payload of this rank's own slice
  std::vector<FrameHeader> slices = {};  // by owner, see header_of()
  std::vector<float> lost = {};  // by encoding the mean of the own slice; empty if nobody asks
  c10::intrusive_ptr<c10d::Work> scatter = {}, gather = {};
  int refused_rank = -1;  // whose frame of the scatter leg did not fit
};

ScatterReduce::ScatterReduce(std::span<const PartitionLayer> layers, const Peers& peers, int chunks,
                             std::int64_t piece)
    : rank_(peers.rank()),
      world_(peers.size()),
      partition_(Partition::in_chunks(layers, peers.size(), chunks, piece)) {
  std::int64_t largest_own_slice = 0;
  for (int c = 0; c < partition_.chunks(); ++c) {
    const Slice& own = partition_.slice(c, rank_);
    std::vector<std::int64_t> of_owner, mine;
    for (int r = 0; r < world_; ++r) {
      const auto theirs = static_cast<std::int64_t>(partition_.slice(c, r).frame_bytes());
      of_owner.push_back(r == rank_ ? 0 : theirs);
      mine.push_back(r == rank_ ? 0 : static_cast<std::int64_t>(own.frame_bytes()));
    }
    Chunk chunk{.scatter_out = Messages(of_owner),
                .scatter_in = Messages(mine),
                .gather_out = Messages(mine),
                .gather_in = Messages(of_owner)};
    chunk.own.resize(own.payload_bytes);
    chunks_.push_back(std::make_unique<Chunk>(std::move(chunk)));
    largest_own_slice = std::max(largest_own_slice, own.numel);
  }
  sums_.resize(static_cast<std::size_t>(largest_own_slice));
}

ScatterReduce::~ScatterReduce() = default;

Averaged ScatterReduce::run(const ReductionContext& context, std::span<const LayerValues> layers) {
  const int chunks = partition_.chunks();
  finite_ = true;
  // Three stages, one chunk apart; all ranks issue their collectives in this order.
  for (int tick = 0; tick < chunks + 2; ++tick) {
    if (tick < chunks) send_slices(context, layers, tick);
    if (tick >= 1 && tick - 1 < chunks) reduce_own_slice(context, layers, tick - 1);
    if (tick >= 2) receive_means(context, layers, tick - 2);
  }
  Averaged averaged{.finite = finite_};
  for (const auto& chunk : chunks_) {
    averaged.sent += chunk->scatter_out.bytes() + chunk->gather_out.bytes();
  }
  return averaged;
}

void ScatterReduce::send_slices(const ReductionContext& context,
                                std::span<const LayerValues> layers, int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  if (chunk.slices.empty()) {
    for (int owner = 0; owner < world_; ++owner) {
      const Slice& slice = partition_.slice(index, owner);
      chunk.slices.push_back({.codec_id = codec_id_of(layers, slice),
                              .numel = static_cast<std::uint64_t>(slice.numel),
                              .payload_bytes = slice.payload_bytes});
    }
  }
  {
    Timeline::Span span(context.timeline, context.track, "COMPRESS");
    for (int owner = 0; owner < world_; ++owner) {
      const Slice& slice = partition_.slice(index, owner);
      if (slice.numel == 0) continue;
      const auto frame = chunk.scatter_out.of(owner);
      const auto payload =
          owner == rank_ ? std::span<std::byte>(chunk.own) : frame.subspan(kFrameHeaderBytes);
      for_each_piece(slice, [&](const Piece& piece, std::size_t byte, std::size_t) {
        encode_piece(context, layers[piece.layer], piece.begin, piece.numel,
                     payload.subspan(byte, piece.bytes));
      });
      if (owner == rank_) continue;
      write_frame_header(header_of(chunk.slices[static_cast<std::size_t>(owner)], context, index,
                                   Leg::kScatter, rank_),
                         payload, frame);
    }
  }
  if (!context.peers->alone()) {
    chunk.scatter = context.peers->all_to_all(chunk.scatter_in, chunk.scatter_out);
  }
}

void ScatterReduce::reduce_own_slice(const ReductionContext& context,
                                     std::span<const LayerValues> layers, int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  if (!context.peers->alone()) {
    Timeline::Span span(context.timeline, context.track, "EXCHANGE",
                        static_cast<std::int64_t>(chunk.scatter_out.bytes()));
    wait(context.peers->group(), chunk.scatter, "scatter_reduce", context.sequence);
  }
  const bool accepted = accepts_own_slice(context, index) && add_up(context, layers, index);
  const auto sums =
      std::span(sums_).first(static_cast<std::size_t>(partition_.slice(index, rank_).numel));
  if (sums_hook_) {
    // Even with sums that mean nothing: other ranks take part in what it exchanges.
    sums_hook_(context, index, sums);
  } else {
    // The one place where a scatter-reduced gradient is divided by the number of ranks.
    kernels::divide(sums, static_cast<float>(context.divisor));
  }
  if (accepted) encode_mean(context, layers, index);
  send_mean(context, index, !accepted);
}

// Checks the frames of the own slice; notes the first that does not fit.
bool ScatterReduce::accepts_own_slice(const ReductionContext& context, int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  chunk.refused_rank = -1;
  const FrameHeader& own = chunk.slices[static_cast<std::size_t>(rank_)];
  if (own.numel == 0) return true;
  for (int r = 0; r < world_; ++r) {
    if (r == rank_) continue;
    const auto frame = chunk.scatter_in.of(r);
    try {
      verify_frame(read_frame_header(frame), header_of(own, context, index, Leg::kScatter, r),
                   frame.subspan(kFrameHeaderBytes));
    } catch (const FrameError& error) {
      chunk.refused_rank = context.peers->group_rank(r);
      context.refusal->note(chunk.refused_rank, error);
      return false;
    }
  }
  return true;
}

// The sums of the own slice, in rank order. False if a payload cannot be decoded.
bool ScatterReduce::add_up(const ReductionContext& context, std::span<const LayerValues> layers,
                           int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  Timeline::Span span(context.timeline, context.track, "DECOMPRESS");
  int r = 0;
  try {
    for_each_piece(partition_.slice(index, rank_), [&](const Piece& piece, std::size_t byte,
                                                       std::size_t element) {
      const LayerValues& layer = layers[piece.layer];
      for (r = 0; r < world_; ++r) {
        const auto payload = r == rank_ ? std::span<const std::byte>(chunk.own)
                                        : chunk.scatter_in.of(r).subspan(kFrameHeaderBytes);
        layer.codec->decompress(payload.subspan(byte, piece.bytes),
                                random_key(context, layer, r, /*stage=*/0, piece.begin),
                                view_of(part_of(sums_, element, piece)),
                                r == 0 ? WriteMode::kAssign : WriteMode::kAccumulate);
      }
    });
  } catch (const FrameError& error) {
    chunk.refused_rank = context.peers->group_rank(r);
    context.refusal->note(chunk.refused_rank, error);
    return false;
  }
  return true;
}

void ScatterReduce::encode_mean(const ReductionContext& context,
                                std::span<const LayerValues> layers, int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  Timeline::Span span(context.timeline, context.track, "COMPRESS");
  const Slice& slice = partition_.slice(index, rank_);
  for_each_piece(slice, [&](const Piece& piece, std::size_t byte, std::size_t element) {
    const LayerValues& layer = layers[piece.layer];
    const RandomKey key = random_key(context, layer, rank_, /*stage=*/1, piece.begin);
    const auto mean = part_of(sums_, element, piece);
    const auto decoded = part_of(layer.values, static_cast<std::size_t>(piece.begin), piece);
    const auto payload = std::span<std::byte>(chunk.own).subspan(byte, piece.bytes);
    if (layer.second) {
      const auto kept =
          layer.second->of(layer.name, layer.first_element + piece.begin, piece.numel);
      if (!kept.empty()) kernels::add_scaled(mean.data(), kept.data(), layer.second_decay, mean);
    }
    layer.codec->compress(view_of(std::span<const float>(mean)), key, payload);
    layer.codec->decompress(payload, key, view_of(decoded), WriteMode::kAssign);
    finite_ = finite_ && kernels::all_finite(decoded);
    if (layer.second) {
      chunk.lost.resize(static_cast<std::size_t>(slice.numel));
      const auto lost = part_of(chunk.lost, element, piece);
      kernels::add_scaled(mean.data(), decoded.data(), -1, lost);
    }
  });
}

void ScatterReduce::send_mean(const ReductionContext& context, int index, bool refused) {
  if (context.peers->alone()) return;
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  const FrameHeader& own = chunk.slices[static_cast<std::size_t>(rank_)];
  if (own.numel > 0 && world_ > 1) {
    FrameHeader header = header_of(own, context, index, Leg::kGather, rank_);
    if (refused) {
      header.status = FrameHeader::Status::kPeerFrameInvalid;
      header.blamed_rank = chunk.refused_rank;
    }
    const auto first = chunk.gather_out.of(rank_ == 0 ? 1 : 0);
    std::copy(chunk.own.begin(), chunk.own.end(), first.begin() + kFrameHeaderBytes);
    write_frame_header(header, chunk.own, first);
    for (int r = 0; r < world_; ++r) {
      const auto frame = chunk.gather_out.of(r);
      if (r != rank_ && frame.data() != first.data()) std::ranges::copy(first, frame.begin());
    }
  }
  chunk.gather = context.peers->all_to_all(chunk.gather_in, chunk.gather_out);
}

void ScatterReduce::receive_means(const ReductionContext& context,
                                  std::span<const LayerValues> layers, int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  if (!context.peers->alone()) {
    Timeline::Span span(context.timeline, context.track, "EXCHANGE",
                        static_cast<std::int64_t>(chunk.gather_out.bytes()));
    wait(context.peers->group(), chunk.gather, "scatter_reduce", context.sequence);
  }
  Timeline::Span span(context.timeline, context.track, "DECOMPRESS");
  for (int owner = 0; owner < world_; ++owner) {
    const Slice& slice = partition_.slice(index, owner);
    if (owner == rank_ || slice.numel == 0) continue;
    const int sender = context.peers->group_rank(owner);
    const auto frame = chunk.gather_in.of(owner);
    const auto payload = frame.subspan(kFrameHeaderBytes);
    try {
      const FrameHeader found = read_frame_header(frame);
      if (found.status != FrameHeader::Status::kOk) {
        context.refusal->note_second_hand(sender, found.blamed_rank);
        continue;
      }
      verify_frame(found,
                   header_of(chunk.slices[static_cast<std::size_t>(owner)], context, index,
                             Leg::kGather, owner),
                   payload);
      for_each_piece(slice, [&](const Piece& piece, std::size_t byte, std::size_t) {
        const LayerValues& layer = layers[piece.layer];
        const auto mean = part_of(layer.values, static_cast<std::size_t>(piece.begin), piece);
        layer.codec->decompress(payload.subspan(byte, piece.bytes),
                                random_key(context, layer, owner, /*stage=*/1, piece.begin),
                                view_of(mean), WriteMode::kAssign);
        finite_ = finite_ && kernels::all_finite(mean);
      });
    } catch (const FrameError& error) {
      context.refusal->note(sender, error);
    }
  }
}

void ScatterReduce::commit(std::span<const LayerValues> layers) {
  for (int c = 0; c < partition_.chunks(); ++c) {
    Chunk& chunk = *chunks_[static_cast<std::size_t>(c)];
    if (chunk.lost.empty()) continue;
    for_each_piece(partition_.slice(c, rank_),
                   [&](const Piece& piece, std::size_t, std::size_t element) {
                     const LayerValues& layer = layers[piece.layer];
                     if (!layer.second) return;
                     layer.second->store(layer.name, layer.first_element + piece.begin,
                                         part_of(chunk.lost, element, piece));
                   });
  }
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
