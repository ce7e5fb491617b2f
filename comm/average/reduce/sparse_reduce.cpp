#include "thinwire/comm/average/reduce/sparse_reduce.h"

#include <algorithm>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {

SparseReduce::SparseReduce(std::span<const PartitionLayer> layers, const Peers& peers)
    : world_(peers.size()), rank_(peers.rank()) {
  std::int64_t largest = 0;
  for (const PartitionLayer& layer : layers) {
    numel_ += layer.numel;
    largest = std::max(largest, layer.numel);
    encoded_.resize(
        std::max(encoded_.size(), layer.codec->max_compressed_bytes(layer.numel, DType::kFloat32)));
  }
  check(numel_ <= kMaxSparseNumel, "sparse exchanges take at most ", kMaxSparseNumel,
        " elements, got ", numel_);
  decoded_.resize(static_cast<std::size_t>(largest));
  entries_.resize(static_cast<std::size_t>(world_));
  to_owners_.resize(static_cast<std::size_t>(world_));
  sums_.resize(numel_of(rank_));
  for (int owner = 0; owner < world_; ++owner) {
    most_ = std::max(most_, kFrameHeaderBytes + max_entries_bytes(numel_of(owner)));
  }
}

std::int64_t SparseReduce::begin_of(int owner) const {
  return numel_ / world_ * owner + numel_ % world_ * owner / world_;
}

std::uint64_t SparseReduce::numel_of(int owner) const {
  return static_cast<std::uint64_t>(begin_of(owner + 1) - begin_of(owner));
}

Averaged SparseReduce::run(const ReductionContext& context, std::span<const LayerValues> layers) {
  pick(context, layers);
  std::vector<FrameHeader> expected;
  for (int p = 0; p < world_; ++p) {
    expected.push_back(header_of(context, numel_of(rank_), p, 0));
  }
  const ReceivedFrames picked = swap_frames(context, to_owners_, expected, most_, "sparse");
  const int refused = add_up(context, picked);

  FrameHeader header = header_of(context, numel_of(rank_), rank_, 1);
  const auto payload = mean_.payload(max_entries_bytes(numel_of(rank_)));
  std::size_t bytes = 0;
  if (refused < 0) {
    bytes = encode_entries(union_, numel_of(rank_), payload);
  } else {
    header.status = FrameHeader::Status::kPeerFrameInvalid;
    header.blamed_rank = refused;
  }
  mean_.finish(header, bytes);
  for (int p = 0; p < world_; ++p) {
    expected[static_cast<std::size_t>(p)] = header_of(context, numel_of(p), p, 1);
  }
  const ReceivedFrames means =
      swap_frames(context, std::span(&mean_, 1), expected, most_, "sparse");
  Averaged averaged{.sent = picked.sent + means.sent};
  if (means.complete && refused < 0) averaged.finite = spread(context, layers, means);
  return averaged;
}

// The entries of this rank, sorted by owner, each owner's encoded in a frame.
void SparseReduce::pick(const ReductionContext& context, std::span<const LayerValues> layers) {
  Timeline::Span span(context.timeline, context.track, "COMPRESS");
  for (SparseEntries& entries : entries_) entries.clear();
  int owner = 0;
  std::int64_t first = 0;  // of the layer
  for (const LayerValues& given : layers) {
    const LayerValues layer = with_carried_added(given);
    const auto decoded = std::span(decoded_).first(layer.values.size());
    ConstTensorView input = view_of(std::span<const float>(layer.values));
    TensorView output = view_of(decoded);
    input.shape = output.shape = layer.shape;
    layer.codec->compress_and_reconstruct(input, random_key(context, layer, rank_, /*stage=*/0, 0),
                                          encoded_, output);
    if (!layer.residual.empty()) {
      kernels::add_scaled(layer.values.data(), decoded.data(), -1, layer.residual);
    }
    note_residual(layer, layer.residual);
    for (std::size_t i = 0; i < decoded.size(); ++i) {
      if (decoded[i] == 0) continue;  // NaN is not zero
      const std::int64_t index = first + static_cast<std::int64_t>(i);
      while (index >= begin_of(owner + 1)) ++owner;
      entries_[static_cast<std::size_t>(owner)].add(
          static_cast<std::uint32_t>(index - begin_of(owner)), decoded[i]);
    }
    first += static_cast<std::int64_t>(layer.values.size());
  }
  for (int o = 0; o < world_; ++o) {
    auto& buffer = to_owners_[static_cast<std::size_t>(o)];
    std::size_t bytes = 0;
    const auto payload = buffer.payload(o == rank_ ? 0 : max_entries_bytes(numel_of(o)));
    if (o != rank_) {
      bytes = encode_entries(entries_[static_cast<std::size_t>(o)], numel_of(o), payload);
    }
    buffer.finish(header_of(context, numel_of(o), rank_, 0), bytes);
  }
}

// Fills union_ with the mean of the own range. Returns the rank whose frame was refused, or −1.
int SparseReduce::add_up(const ReductionContext& context, const ReceivedFrames& received) {
  Timeline::Span span(context.timeline, context.track, "DECOMPRESS");
  std::ranges::fill(sums_, 0.0f);
  for (int p = 0; p < world_; ++p) {
    const SparseEntries* entries = &entries_[static_cast<std::size_t>(p)];
    if (p != rank_) {
      const auto payload = received.payloads[static_cast<std::size_t>(p)];
      const int sender = context.peers->group_rank(p);
      if (payload.empty()) return sender;
      try {
        decode_entries(payload, numel_of(rank_), scratch_);
      } catch (const FrameError& error) {
        context.refusal->note(sender, error);
        return sender;
      }
      entries = &scratch_;
    }
    for (std::size_t i = 0; i < entries->size(); ++i) {
      sums_[entries->indices[i]] += entries->values[i];
    }
  }
  union_.clear();
  for (std::size_t i = 0; i < sums_.size(); ++i) {
    // The one place where a sparse gradient is divided by the number of ranks.
    const float mean = sums_[i] / static_cast<float>(context.divisor);
    if (mean != 0) union_.add(static_cast<std::uint32_t>(i), mean);
  }
  return -1;
}

// Whether all means are finite.
bool SparseReduce::spread(const ReductionContext& context, std::span<const LayerValues> layers,
                          const ReceivedFrames& received) {
  Timeline::Span span(context.timeline, context.track, "DECOMPRESS");
  bool finite = true;
  for (int p = 0; p < world_; ++p) {
    if (p == rank_) {
      write_range(layers, p, union_);
      finite = finite && kernels::all_finite(union_.values);
      continue;
    }
    try {
      decode_entries(received.payloads[static_cast<std::size_t>(p)], numel_of(p), scratch_);
    } catch (const FrameError& error) {
      context.refusal->note(context.peers->group_rank(p), error);
      return finite;
    }
    write_range(layers, p, scratch_);
    finite = finite && kernels::all_finite(scratch_.values);
  }
  return finite;
}

// Assigns the elements of an owner's range, zeros included.
void SparseReduce::write_range(std::span<const LayerValues> layers, int owner,
                               const SparseEntries& entries) {
  const std::int64_t begin = begin_of(owner);
  const std::int64_t end = begin_of(owner + 1);
  std::int64_t first = 0;  // of the layer
  std::size_t next = 0;
  for (const LayerValues& layer : layers) {
    const auto numel = static_cast<std::int64_t>(layer.values.size());
    const std::int64_t from = std::max(begin, first);
    const std::int64_t to = std::min(end, first + numel);
    if (from < to) {
      std::fill(layer.values.begin() + (from - first), layer.values.begin() + (to - first), 0.0f);
      for (; next < entries.size() && begin + entries.indices[next] < to; ++next) {
        layer.values[static_cast<std::size_t>(begin + entries.indices[next] - first)] =
            entries.values[next];
      }
    }
    first += numel;
  }
}

}  // namespace thinwire::comm
