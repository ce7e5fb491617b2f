#include "thinwire/comm/average/reduce/gather_reduce.h"

#include <algorithm>
#include <boost/endian/conversion.hpp>
#include <cmath>
#include <cstring>
#include <limits>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {
namespace {

// A payload: the length of every layer's part (u64, little-endian), then the parts.
constexpr std::size_t kLengthBytes = sizeof(std::uint64_t);
// Elements of a mean that are added up at once.
constexpr auto kPiece = static_cast<std::size_t>(Partition::kCachedPiece);

// Fills `parts` with those of the layers. Throws FrameError unless they are the whole payload.
void split(std::span<const std::byte> payload, std::size_t layers,
           std::vector<std::span<const std::byte>>& parts) {
  std::size_t at = kLengthBytes * layers;
  parts.clear();
  for (std::size_t i = 0; i < layers; ++i) {
    std::uint64_t length = 0;
    if (payload.size() >= at) std::memcpy(&length, payload.data() + kLengthBytes * i, kLengthBytes);
    boost::endian::little_to_native_inplace(length);
    if (payload.size() < at || length > payload.size() - at) {
      throw FrameError(concat("layer ", i, " claims ", length, " bytes of a payload of ",
                              payload.size(), " from byte ", at, " on"));
    }
    parts.push_back(payload.subspan(at, length));
    at += length;
  }
  if (at != payload.size()) {
    throw FrameError(concat("a payload has ", payload.size(), " bytes, its layers take ", at));
  }
}

// Whether `world` such values can be added up to a finite number.
bool can_be_added(std::span<const float> values, int world) {
  const float most = std::numeric_limits<float>::max() / static_cast<float>(world);
  return std::ranges::all_of(values, [most](float value) { return std::fabs(value) <= most; });
}

}  // namespace

GatherReduce::GatherReduce(std::span<const PartitionLayer> layers)
    : most_(kLengthBytes * layers.size()) {
  for (const PartitionLayer& layer : layers) {
    most_ += layer.codec->max_compressed_bytes(layer.numel, DType::kFloat32);
    numel_ += layer.numel;
  }
}

void GatherReduce::begin() {
  const auto numel = static_cast<std::uint64_t>(numel_);
  {
    PhaseSpan span(context_, Phase::kCompress);
    const auto payload = own_.payload(context_.workspace->arena, most_);
    std::size_t at = kLengthBytes * layers_.size();
    own_finite_ = true;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      std::size_t bytes = 0;
      own_finite_ = encode_layer(layers_[i], payload.subspan(at), bytes) && own_finite_;
      const auto length = boost::endian::native_to_little(static_cast<std::uint64_t>(bytes));
      std::memcpy(payload.data() + kLengthBytes * i, &length, kLengthBytes);
      at += bytes;
    }
    FrameHeader header = header_of(context_, numel, context_.peers->rank(), 0);
    if (!own_finite_) header.status = FrameHeader::Status::kNonFinite;
    own_.finish(header, at);
  }
  expected_.clear();
  for (int p = 0; p < context_.peers->size(); ++p) {
    expected_.push_back(header_of(context_, numel, p, 0));
  }
  swap_.announce(context_, std::span(&own_, 1), "gather_reduce");
}

// Whether the mean of payloads like this one is finite: the receivers have to know before they
// decode any.
bool GatherReduce::encode_layer(const LayerValues& layer, std::span<std::byte> out,
                                std::size_t& bytes) {
  const auto numel = static_cast<std::int64_t>(layer.values.size());
  const int world = context_.peers->size();
  SparseEntries& entries = context_.workspace->scratch;
  bytes = encode_piece(context_, layer, 0, numel, out);
  if (layer.codec->decompress_entries(out.first(bytes), numel, entries)) {
    return can_be_added(entries.values, world);
  }
  const auto decoded = context_.workspace->arena.floats(layer.values.size());
  TensorView output = view_of(decoded);
  output.shape = layer.shape;
  layer.codec->decompress(out.first(bytes),
                          random_key(context_, layer, context_.peers->rank(), /*stage=*/0, 0),
                          output, WriteMode::kAssign);
  return can_be_added(decoded, world);
}

Averaged GatherReduce::receive() {
  const ReceivedFrames received = swap_.receive(expected_);
  const int world = context_.peers->size();
  parts_.resize(static_cast<std::size_t>(world));
  int peer = 0;
  try {
    for (; peer < world && received.complete; ++peer) {
      const auto p = static_cast<std::size_t>(peer);
      split(peer == context_.peers->rank() ? own_.payload() : received.payloads[p], layers_.size(),
            parts_[p]);
    }
  } catch (const FrameError& error) {
    context_.refusal->note(context_.peers->group_rank(peer), error);
  }
  return {.sent = received.sent, .finite = own_finite_ && received.finite};
}

void GatherReduce::deliver(bool keep) {
  PhaseSpan span(context_, Phase::kDecompress);
  int peer = 0;
  try {
    for (std::size_t i = 0; i < layers_.size(); ++i) decode_mean(layers_[i], i, keep, peer);
  } catch (const FrameError& error) {
    context_.refusal->note(context_.peers->group_rank(peer), error);
  }
  swap_.release();
}

void GatherReduce::decode_mean(const LayerValues& layer, std::size_t index, bool keep, int& peer) {
  const int world = context_.peers->size();
  auto& entries = context_.workspace->received;
  entries.resize(static_cast<std::size_t>(world));
  const auto part = [&] { return parts_[static_cast<std::size_t>(peer)][index]; };
  bool sparse = true;  // all ranks have the same codec
  for (peer = 0; peer < world && sparse; ++peer) {
    sparse = layer.codec->decompress_entries(part(), static_cast<std::int64_t>(layer.values.size()),
                                             entries[static_cast<std::size_t>(peer)]);
  }
  if (sparse) return add_entries(layer, keep);
  if (keep) keep_residual(layer);
  TensorView output = view_of(layer.values);
  output.shape = layer.shape;
  for (peer = 0; peer < world; ++peer) {
    layer.codec->decompress(part(), random_key(context_, layer, peer, /*stage=*/0, 0), output,
                            peer == 0 ? WriteMode::kAssign : WriteMode::kAccumulate);
  }
  // Here and in add_entries() is where a gather-reduced gradient is divided by the number of ranks.
  kernels::divide(layer.values, static_cast<float>(context_.divisor));
}

// The values become the mean of the entries received, summed in rank order, a piece at a time from
// its residual on, while it is in cache.
void GatherReduce::add_entries(const LayerValues& layer, bool keep) const {
  const std::span<float> values = layer.values;
  const auto& received = context_.workspace->received;
  auto& next = context_.workspace->next;
  next.assign(received.size(), 0);
  for (std::size_t begin = 0; begin < values.size(); begin += kPiece) {
    const auto piece = values.subspan(begin, std::min(kPiece, values.size() - begin));
    const std::size_t end = begin + piece.size();
    if (keep) {
      keep_residual(layer, static_cast<std::int64_t>(begin),
                    static_cast<std::int64_t>(piece.size()));
    }
    std::ranges::fill(piece, 0.0f);
    for (std::size_t p = 0; p < received.size(); ++p) {
      const SparseEntries& entries = received[p];
      std::size_t& at = next[p];
      for (; at < entries.size() && entries.indices[at] < end; ++at) {
        piece[entries.indices[at] - begin] += entries.values[at];
      }
    }
    kernels::divide(piece, static_cast<float>(context_.divisor));
  }
}

}  // namespace thinwire::comm
