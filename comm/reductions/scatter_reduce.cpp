#include "thinwire/comm/reductions/scatter_reduce.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>

#include "thinwire/comm/failure.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codec_table.h"
#include "thinwire/compressors/frame.h"

namespace thinwire::comm {
namespace {

// The two messages of a chunk are told apart by the frame's chunk number.
enum class Leg : std::uint32_t { kScatter = 0, kGather = 1 };

// What the frame of `slice_header`'s slice must say when `sender` sends it on a leg of a chunk.
FrameHeader header_of(FrameHeader slice_header, const Exchange& exchange, int chunk, Leg leg,
                      int sender) {
  slice_header.sender = static_cast<std::uint32_t>(sender);
  slice_header.chunk = static_cast<std::uint32_t>(2 * chunk) + static_cast<std::uint32_t>(leg);
  slice_header.layout = exchange.layout;
  slice_header.sequence = exchange.sequence;
  return slice_header;
}

// Received bytes, or bytes to send, with the place of every peer's frame.
struct Messages {
  at::Tensor bytes;
  std::vector<std::int64_t> sizes;
  std::vector<std::size_t> offsets;

  explicit Messages(std::vector<std::int64_t> frame_sizes)
      : sizes(std::move(frame_sizes)), offsets(sizes.size()) {
    std::int64_t total = 0;
    for (std::size_t r = 0; r < sizes.size(); ++r) {
      offsets[r] = static_cast<std::size_t>(total);
      total += sizes[r];
    }
    bytes = at::empty({total}, at::kByte);
  }

  std::span<std::byte> frame(int rank) {
    const auto r = static_cast<std::size_t>(rank);
    auto* data = static_cast<std::byte*>(bytes.mutable_data_ptr());
    return {data + offsets[r], static_cast<std::size_t>(sizes[r])};
  }
};

// A table id for frames whose layers all have one codec, else kMixedCodecs.
std::uint16_t codec_id_of(std::span<const LayerValues> layers, const Slice& slice) {
  std::optional<std::uint16_t> id;
  for (const Piece& piece : slice.pieces) {
    const std::string spec = layers[piece.layer].codec->spec();
    const auto entry = codec_entry(std::string_view(spec).substr(0, spec.find('(')));
    if (id && *id != entry.id) return kMixedCodecs;
    id = entry.id;
  }
  return id.value_or(kMixedCodecs);
}

}  // namespace

struct ScatterReduce::Chunk {
  Messages scatter_out, scatter_in, gather_out, gather_in;
  std::vector<std::byte> own;       // payload of this rank's own slice
  std::vector<FrameHeader> slices;  // by owner, see header_of()
  c10::intrusive_ptr<c10d::Work> scatter, gather;
  // The frame of the scatter leg that did not fit, kept until all ranks are at the same place.
  std::optional<FrameError> refused;
  int refused_rank = -1;
};

ScatterReduce::ScatterReduce(std::span<const PartitionLayer> layers, int rank, int world,
                             std::size_t chunk_bytes)
    : rank_(rank), world_(world), partition_(layers, world, chunk_bytes) {
  std::int64_t largest_own_slice = 0;
  for (int c = 0; c < partition_.chunks(); ++c) {
    std::vector<std::int64_t> to_owner, mine, of_owner;
    for (int r = 0; r < world; ++r) {
      const auto theirs = static_cast<std::int64_t>(partition_.slice(c, r).frame_bytes());
      const auto own = static_cast<std::int64_t>(partition_.slice(c, rank).frame_bytes());
      to_owner.push_back(r == rank ? 0 : theirs);
      mine.push_back(r == rank ? 0 : own);
      of_owner.push_back(r == rank ? 0 : theirs);
    }
    chunks_.push_back(std::make_unique<Chunk>(Chunk{Messages(to_owner),
                                                    Messages(mine),
                                                    Messages(mine),
                                                    Messages(of_owner),
                                                    {},
                                                    {},
                                                    {},
                                                    {},
                                                    {}}));
    chunks_.back()->own.resize(partition_.slice(c, rank).payload_bytes);
    largest_own_slice = std::max(largest_own_slice, partition_.slice(c, rank).numel);
  }
  sums_.resize(static_cast<std::size_t>(largest_own_slice));
}

ScatterReduce::~ScatterReduce() = default;

std::size_t ScatterReduce::wire_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& chunk : chunks_) {
    bytes += chunk->scatter_out.bytes.numel() + chunk->gather_out.bytes.numel();
  }
  return static_cast<std::size_t>(bytes);
}

void ScatterReduce::run(const Exchange& exchange, std::span<const LayerValues> layers) {
  const int chunks = partition_.chunks();
  // Three stages, one chunk apart; all ranks issue their collectives in this order.
  for (int tick = 0; tick < chunks + 2; ++tick) {
    if (tick < chunks) send_slices(exchange, layers, tick);
    if (tick >= 1 && tick - 1 < chunks) reduce_own_slice(exchange, layers, tick - 1);
    if (tick >= 2) receive_means(exchange, layers, tick - 2);
  }
}

void ScatterReduce::send_slices(const Exchange& exchange, std::span<const LayerValues> layers,
                                int index) {
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
    Timeline::Span span(exchange.timeline, exchange.track, "COMPRESS");
    for (int owner = 0; owner < world_; ++owner) {
      const Slice& slice = partition_.slice(index, owner);
      if (slice.numel == 0) continue;
      const auto frame = chunk.scatter_out.frame(owner);
      const auto payload =
          owner == rank_ ? std::span<std::byte>(chunk.own) : frame.subspan(kFrameHeaderBytes);
      std::size_t at = 0;
      for (const Piece& piece : slice.pieces) {
        at += encode_piece(exchange, layers[piece.layer], piece.begin, piece.numel,
                           payload.subspan(at, piece.bytes));
      }
      THINWIRE_ASSERT(at == slice.payload_bytes);
      if (owner == rank_) continue;
      write_frame_header(header_of(chunk.slices[static_cast<std::size_t>(owner)], exchange, index,
                                   Leg::kScatter, rank_),
                         payload, frame);
    }
  }
  if (world_ > 1) {
    chunk.scatter = exchange.group.alltoall_base(chunk.scatter_in.bytes, chunk.scatter_out.bytes,
                                                 chunk.scatter_in.sizes, chunk.scatter_out.sizes);
  }
}

void ScatterReduce::reduce_own_slice(const Exchange& exchange, std::span<const LayerValues> layers,
                                     int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  if (world_ > 1) {
    Timeline::Span span(exchange.timeline, exchange.track, "EXCHANGE",
                        chunk.scatter_out.bytes.numel());
    wait(exchange.group, chunk.scatter, "scatter_reduce", exchange.sequence);
  }
  const Slice& slice = partition_.slice(index, rank_);
  const FrameHeader& own = chunk.slices[static_cast<std::size_t>(rank_)];
  chunk.refused.reset();
  if (slice.numel > 0) {
    Timeline::Span span(exchange.timeline, exchange.track, "DECOMPRESS");
    for (int r = 0; r < world_ && !chunk.refused; ++r) {
      if (r == rank_) continue;
      const auto frame = chunk.scatter_in.frame(r);
      try {
        verify_frame(read_frame_header(frame), header_of(own, exchange, index, Leg::kScatter, r),
                     frame.subspan(kFrameHeaderBytes));
      } catch (const FrameError& error) {
        chunk.refused = error;
        chunk.refused_rank = r;
      }
    }
    std::size_t at = 0;
    std::size_t element = 0;
    for (const Piece& piece : slice.pieces) {
      if (chunk.refused) break;
      const auto sums =
          std::span<float>(sums_).subspan(element, static_cast<std::size_t>(piece.numel));
      const LayerValues& layer = layers[piece.layer];
      for (int r = 0; r < world_; ++r) {
        const auto payload = r == rank_ ? std::span<const std::byte>(chunk.own)
                                        : chunk.scatter_in.frame(r).subspan(kFrameHeaderBytes);
        layer.codec->decompress(payload.subspan(at, piece.bytes),
                                random_key(exchange, layer.id, r, 0, piece.begin), view_of(sums),
                                r == 0 ? WriteMode::kAssign : WriteMode::kAccumulate);
      }
      // The one place where a scatter-reduced gradient is divided by the number of ranks.
      for (float& sum : sums) sum /= static_cast<float>(world_);
      at += piece.bytes;
      element += static_cast<std::size_t>(piece.numel);
    }
  }
  {
    Timeline::Span span(exchange.timeline, exchange.track, "COMPRESS");
    std::size_t at = 0;
    std::size_t element = 0;
    for (const Piece& piece : slice.pieces) {
      if (chunk.refused) break;
      const LayerValues& layer = layers[piece.layer];
      const RandomKey key = random_key(exchange, layer.id, rank_, /*stage=*/1, piece.begin);
      const std::span<const float> mean(sums_.data() + element,
                                        static_cast<std::size_t>(piece.numel));
      const auto payload = std::span<std::byte>(chunk.own).subspan(at, piece.bytes);
      layer.codec->compress(view_of(mean), key, payload);
      layer.codec->decompress(
          payload, key,
          view_of(layer.values.subspan(static_cast<std::size_t>(piece.begin), mean.size())),
          WriteMode::kAssign);
      at += piece.bytes;
      element += static_cast<std::size_t>(piece.numel);
    }
    if (slice.numel > 0 && world_ > 1) {
      FrameHeader header = header_of(own, exchange, index, Leg::kGather, rank_);
      if (chunk.refused) {
        header.status = FrameHeader::Status::kPeerFrameInvalid;
        header.blamed_rank = chunk.refused_rank;
      }
      const auto first = chunk.gather_out.frame(rank_ == 0 ? 1 : 0);
      std::copy(chunk.own.begin(), chunk.own.end(), first.begin() + kFrameHeaderBytes);
      write_frame_header(header, chunk.own, first);
      for (int r = 0; r < world_; ++r) {
        const auto frame = chunk.gather_out.frame(r);
        if (r != rank_ && frame.data() != first.data()) std::ranges::copy(first, frame.begin());
      }
    }
  }
  if (world_ > 1) {
    chunk.gather = exchange.group.alltoall_base(chunk.gather_in.bytes, chunk.gather_out.bytes,
                                                chunk.gather_in.sizes, chunk.gather_out.sizes);
  }
}

void ScatterReduce::receive_means(const Exchange& exchange, std::span<const LayerValues> layers,
                                  int index) {
  Chunk& chunk = *chunks_[static_cast<std::size_t>(index)];
  if (world_ > 1) {
    Timeline::Span span(exchange.timeline, exchange.track, "EXCHANGE",
                        chunk.gather_out.bytes.numel());
    wait(exchange.group, chunk.gather, "scatter_reduce", exchange.sequence);
  }
  if (chunk.refused) throw *chunk.refused;
  Timeline::Span span(exchange.timeline, exchange.track, "DECOMPRESS");
  for (int owner = 0; owner < world_; ++owner) {
    const Slice& slice = partition_.slice(index, owner);
    if (owner == rank_ || slice.numel == 0) continue;
    const auto frame = chunk.gather_in.frame(owner);
    const FrameHeader found = read_frame_header(frame);
    if (found.status != FrameHeader::Status::kOk) {
      throw FrameError(concat("scatter_reduce #", exchange.sequence, ": rank ", owner,
                              " refused the frame of rank ", found.blamed_rank));
    }
    const auto payload = frame.subspan(kFrameHeaderBytes);
    verify_frame(found,
                 header_of(chunk.slices[static_cast<std::size_t>(owner)], exchange, index,
                           Leg::kGather, owner),
                 payload);
    std::size_t at = 0;
    for (const Piece& piece : slice.pieces) {
      const LayerValues& layer = layers[piece.layer];
      layer.codec->decompress(payload.subspan(at, piece.bytes),
                              random_key(exchange, layer.id, owner, /*stage=*/1, piece.begin),
                              view_of(layer.values.subspan(static_cast<std::size_t>(piece.begin),
                                                           static_cast<std::size_t>(piece.numel))),
                              WriteMode::kAssign);
      at += piece.bytes;
    }
  }
}

}  // namespace thinwire::comm
