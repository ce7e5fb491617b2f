#include "thinwire/comm/average/reduce/sparse_reduce.h"

#include <algorithm>
#include <cmath>

#include "thinwire/comm/average/reduce/sparse_payloads.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {
namespace {

// What a rank sends in all, in payloads of its own entries, and the most.
constexpr double kPayloads = kSparsePayloads, kMostPayloads = 2.2;

}  // namespace

SparseReduce::SparseReduce(std::span<const PartitionLayer> layers, const Peers& peers)
    : world_(peers.size()), rank_(peers.rank()) {
  for (const PartitionLayer& layer : layers) {
    numel_ += layer.numel;
    most_of_a_layer_ =
        std::max(most_of_a_layer_, layer.codec->max_compressed_bytes(layer.numel, DType::kFloat32));
  }
  check(numel_ <= kMaxSparseNumel, "sparse exchanges take at most ", kMaxSparseNumel,
        " elements, got ", numel_);
  to_owners_.resize(static_cast<std::size_t>(world_));
  for (int owner = 0; owner < world_; ++owner) {
    most_ = std::max(most_, kFrameHeaderBytes + max_entries_bytes(numel_of(owner)));
  }
  std::int64_t first = 0;  // of the layer
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::int64_t begin = std::max(first, begin_of(rank_));
    const std::int64_t end = std::min(first + layers[i].numel, begin_of(rank_ + 1));
    if (begin < end) {
      pieces_.push_back({.layer = i, .begin = begin - first, .numel = end - begin});
    }
    first += layers[i].numel;
  }
}

std::int64_t SparseReduce::begin_of(int owner) const {
  return numel_ / world_ * owner + numel_ % world_ * owner / world_;
}

std::uint64_t SparseReduce::numel_of(int owner) const {
  return static_cast<std::uint64_t>(begin_of(owner + 1) - begin_of(owner));
}

void SparseReduce::begin() {
  pick();
  to_owners_swap_.announce(context_, to_owners_, "sparse");
}

// The entries of this rank, sorted by owner, each owner's encoded in a frame.
void SparseReduce::pick() {
  PhaseSpan span(context_, Phase::kCompress);
  auto& picked = context_.workspace->picked;
  picked.resize(static_cast<std::size_t>(world_));
  for (LayeredEntries& entries : picked) entries.clear();
  const auto encoded = context_.workspace->arena.bytes(most_of_a_layer_);
  std::int64_t first = 0;  // of the layer
  for (const LayerValues& layer : layers_) {
    const auto numel = static_cast<std::int64_t>(layer.values.size());
    const auto bytes = encode_piece(context_, layer, 0, numel, encoded);
    const bool sparse =
        layer.codec->decompress_entries(encoded.first(bytes), numel, context_.workspace->scratch);
    THINWIRE_ASSERT(sparse);
    sort_by_owner(first);
    first += numel;
  }
  own_entries_ = 0;
  for (const SparseEntries& entries : picked) own_entries_ += entries.size();
  own_in_range_ = picked[static_cast<std::size_t>(rank_)].size();
  for (int owner = 0; owner < world_; ++owner) address(owner);
}

// Those of a layer that begins with element `first`.
void SparseReduce::sort_by_owner(std::int64_t first) {
  const SparseEntries& entries = context_.workspace->scratch;
  int owner = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (entries.values[i] == 0) continue;  // NaN is not zero
    const std::int64_t index = first + entries.indices[i];
    while (index >= begin_of(owner + 1)) ++owner;
    context_.workspace->picked[static_cast<std::size_t>(owner)].add(
        static_cast<std::uint32_t>(index - begin_of(owner)), entries.values[i]);
  }
  for (LayeredEntries& of_owner : context_.workspace->picked) of_owner.end_layer();
}

void SparseReduce::address(int owner) {
  const LayeredEntries& entries = context_.workspace->picked[static_cast<std::size_t>(owner)];
  FrameBuffer& buffer = to_owners_[static_cast<std::size_t>(owner)];
  const std::uint64_t numel = numel_of(owner);
  std::size_t bytes = 0;
  const auto payload = buffer.payload(
      context_.workspace->arena,
      owner == rank_ ? 0 : max_entries_bytes(numel, entries.size(), entries.ends.size()));
  if (owner != rank_) bytes = encode_entries(entries, numel, payload);
  buffer.finish(header_of(context_, numel, rank_, 0), bytes);
}

void SparseReduce::advance() {
  to_owners_swap_.send(most_);
  const std::uint64_t own_numel = numel_of(rank_);
  std::vector<FrameHeader> expected;
  for (int p = 0; p < world_; ++p) expected.push_back(header_of(context_, own_numel, p, 0));
  const ReceivedFrames received = to_owners_swap_.receive(expected);
  means_.sent = received.sent;

  LayeredEntries& means = context_.workspace->means;
  means.clear();
  refused_ = add_up(received);
  if (refused_ < 0) choose_means(add_kept(), means);
  FrameHeader header = header_of(context_, own_numel, rank_, 1);
  const auto payload = mean_.payload(context_.workspace->arena,
                                     max_entries_bytes(own_numel, means.size(), means.ends.size()));
  std::size_t bytes = 0;
  own_finite_ = kernels::all_finite(means.values);
  if (refused_ < 0) {
    bytes = encode_entries(means, own_numel, payload);
    if (!own_finite_) header.status = FrameHeader::Status::kNonFinite;
  } else {
    header.status = FrameHeader::Status::kPeerFrameInvalid;
    header.blamed_rank = refused_;
  }
  mean_.finish(header, bytes);
  means_swap_.announce(context_, std::span(&mean_, 1), "sparse");
  means_swap_.send(most_);
}

// Fills the sums of the own range with the means. Returns the rank whose frame was refused, or −1.
int SparseReduce::add_up(const ReceivedFrames& received) {
  PhaseSpan span(context_, Phase::kDecompress);
  sums_ = context_.workspace->arena.floats(numel_of(rank_));
  std::ranges::fill(sums_, 0.0f);
  met_ = 0;
  for (int p = 0; p < world_; ++p) {
    const SparseEntries* entries = &context_.workspace->picked[static_cast<std::size_t>(p)];
    if (p != rank_) {
      const auto payload = received.payloads[static_cast<std::size_t>(p)];
      const int sender = context_.peers->group_rank(p);
      if (payload.empty()) return sender;
      try {
        decode_entries(payload, numel_of(rank_), context_.workspace->scratch);
      } catch (const FrameError& error) {
        context_.refusal->note(sender, error);
        return sender;
      }
      entries = &context_.workspace->scratch;
    }
    met_ += entries->size();
    for (std::size_t i = 0; i < entries->size(); ++i) {
      sums_[entries->indices[i]] += entries->values[i];
    }
  }
  // The one place where a sparse gradient is divided by the number of ranks.
  kernels::divide(sums_, static_cast<float>(context_.divisor));
  return -1;
}

// What the last means lost. Whether every layer of the own range keeps such.
bool SparseReduce::add_kept() {
  bool all = true;
  std::size_t at = 0;
  for (const Piece& piece : pieces_) {
    const LayerValues& layer = layers_[piece.layer];
    const auto mean = sums_.subspan(at, static_cast<std::size_t>(piece.numel));
    at += mean.size();
    all = all && layer.second;
    if (!layer.second) continue;
    const auto kept = layer.second->of(layer.name, layer.first_element + piece.begin, piece.numel);
    if (!kept.empty()) kernels::add_scaled(mean.data(), kept.data(), layer.second_decay, mean);
  }
  return all;
}

// Means that the own range may send to every other rank.
std::size_t SparseReduce::most_means() const {
  const double others = world_ - 1;
  const double of_the_met = (kPayloads * world_ / others - 1) * static_cast<double>(met_) / world_;
  const double sent = static_cast<double>(own_entries_ - own_in_range_);
  const double left = kMostPayloads * static_cast<double>(own_entries_) - sent;
  return static_cast<std::size_t>(std::ceil(std::max(1.0, std::min(of_the_met, left / others))));
}

// Fills `means`, and leaves in the sums what they are not.
void SparseReduce::choose_means(bool may_keep, LayeredEntries& means) {
  PhaseSpan span(context_, Phase::kCompress);
  const auto set = static_cast<std::size_t>(
      std::ranges::count_if(sums_, [](float value) { return value != 0; }));
  // A mean that is not finite spoils the layer, whose other entries must then travel as well.
  const bool chooses = may_keep && world_ > 1 && kernels::all_finite(sums_);
  if (!chooses || set <= most_means()) {
    for (std::size_t i = 0; i < sums_.size(); ++i) {
      if (sums_[i] != 0) means.add(static_cast<std::uint32_t>(i), sums_[i]);
    }
  } else {
    kernels::TopkSelection& chosen = context_.workspace->chosen;
    kernels::select_topk(sums_, most_means(), chosen);
    for (std::size_t i = 0; i < chosen.indices.size(); ++i) {
      means.add(chosen.indices[i], chosen.values[i]);
    }
  }
  end_layers(chooses, means);
  for (std::size_t i = 0; i < means.size(); ++i) sums_[means.indices[i]] -= means.values[i];
}

// Tells whose the means are, and rounds each layer's as its codec stores values.
void SparseReduce::end_layers(bool round, LayeredEntries& means) {
  std::size_t begin = 0, end = 0;
  std::int64_t numel = 0;  // up to the end of the piece
  for (const Piece& piece : pieces_) {
    numel += piece.numel;
    while (end < means.size() && means.indices[end] < numel) ++end;
    const ValueType type = layers_[piece.layer].codec->facts().values;
    if (round) store_as(type, std::span(means.values).subspan(begin, end - begin));
    if (end > begin) means.ends.push_back(static_cast<std::uint32_t>(end));
    begin = end;
  }
}

Averaged SparseReduce::receive() {
  const std::size_t sent_to_owners = means_.sent;
  std::vector<FrameHeader> expected;
  for (int p = 0; p < world_; ++p) expected.push_back(header_of(context_, numel_of(p), p, 1));
  means_ = means_swap_.receive(expected);
  return {.sent = sent_to_owners + means_.sent,
          .means = means_.sent,
          .finite = own_finite_ && means_.finite};
}

void SparseReduce::deliver(bool keep) {
  PhaseSpan span(context_, Phase::kDecompress);
  if (keep) {
    for (const LayerValues& layer : layers_) keep_residual(layer);
  }
  SparseEntries& entries = context_.workspace->scratch;
  for (int p = 0; p < world_; ++p) {
    const auto payload =
        p == rank_ ? mean_.payload() : means_.payloads[static_cast<std::size_t>(p)];
    try {
      decode_entries(payload, numel_of(p), entries);
    } catch (const FrameError& error) {
      context_.refusal->note(context_.peers->group_rank(p), error);
      break;
    }
    write_range(p, entries);
  }
  to_owners_swap_.release();
  means_swap_.release();
}

void SparseReduce::commit() {
  std::size_t at = 0;
  for (const Piece& piece : pieces_) {
    const LayerValues& layer = layers_[piece.layer];
    const auto rest = sums_.subspan(at, static_cast<std::size_t>(piece.numel));
    at += rest.size();
    if (layer.second) layer.second->store(layer.name, layer.first_element + piece.begin, rest);
  }
}

// Assigns the elements of an owner's range, zeros included.
void SparseReduce::write_range(int owner, const SparseEntries& entries) {
  const std::int64_t begin = begin_of(owner);
  const std::int64_t end = begin_of(owner + 1);
  std::int64_t first = 0;  // of the layer
  std::size_t next = 0;
  for (const LayerValues& layer : layers_) {
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
