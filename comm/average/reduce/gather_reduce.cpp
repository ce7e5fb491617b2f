#include "thinwire/comm/average/reduce/gather_reduce.h"

#include <algorithm>
#include <boost/endian/conversion.hpp>
#include <cstring>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {
namespace {

// A payload: the length of every layer's part (u64, little-endian), then the parts.
constexpr std::size_t kLengthBytes = sizeof(std::uint64_t);
// Elements of a mean that are added up at once.
constexpr auto kPiece = static_cast<std::size_t>(Partition::kCachedPiece);

// The parts of the layers. Throws FrameError unless they are the whole payload.
std::vector<std::span<const std::byte>> split(std::span<const std::byte> payload,
                                              std::size_t layers) {
  std::size_t at = kLengthBytes * layers;
  std::vector<std::span<const std::byte>> parts;
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
  return parts;
}

}  // namespace

GatherReduce::GatherReduce(std::span<const PartitionLayer> layers)
    : most_(kLengthBytes * layers.size()) {
  for (const PartitionLayer& layer : layers) {
    most_ += layer.codec->max_compressed_bytes(layer.numel, DType::kFloat32);
    numel_ += layer.numel;
  }
}

Averaged GatherReduce::run(const ReductionContext& context, std::span<const LayerValues> layers) {
  encode(context, layers);
  std::vector<FrameHeader> expected;
  for (int p = 0; p < context.peers->size(); ++p) {
    expected.push_back(header_of(context, static_cast<std::uint64_t>(numel_), p, 0));
  }
  const ReceivedFrames received = swap_frames(context, std::span(&own_, 1), expected,
                                              kFrameHeaderBytes + most_, "gather_reduce");
  Averaged averaged{.sent = received.sent};
  if (received.complete) averaged.finite = decode_mean(context, layers, received);
  return averaged;
}

void GatherReduce::encode(const ReductionContext& context, std::span<const LayerValues> layers) {
  Timeline::Span span(context.timeline, context.track, "COMPRESS");
  const auto payload = own_.payload(most_);
  std::size_t at = kLengthBytes * layers.size();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto bytes =
        encode_piece(context, layers[i], 0, static_cast<std::int64_t>(layers[i].values.size()),
                     payload.subspan(at));
    const auto length = boost::endian::native_to_little(static_cast<std::uint64_t>(bytes));
    std::memcpy(payload.data() + kLengthBytes * i, &length, kLengthBytes);
    at += bytes;
  }
  own_.finish(header_of(context, static_cast<std::uint64_t>(numel_), context.peers->rank(), 0), at);
}

bool GatherReduce::decode_mean(const ReductionContext& context, std::span<const LayerValues> layers,
                               const ReceivedFrames& received) {
  Timeline::Span span(context.timeline, context.track, "DECOMPRESS");
  const int world = context.peers->size();
  entries_.resize(static_cast<std::size_t>(world));
  std::vector<std::vector<std::span<const std::byte>>> parts;  // [peer][layer]
  bool finite = true;
  int peer = 0;
  try {
    for (; peer < world; ++peer) {
      parts.push_back(split(peer == context.peers->rank()
                                ? own_.payload()
                                : received.payloads[static_cast<std::size_t>(peer)],
                            layers.size()));
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const LayerValues& layer = layers[i];
      const auto part = [&] { return parts[static_cast<std::size_t>(peer)][i]; };
      bool sparse = true;  // all ranks have the same codec
      for (peer = 0; peer < world && sparse; ++peer) {
        sparse =
            layer.codec->decompress_entries(part(), static_cast<std::int64_t>(layer.values.size()),
                                            entries_[static_cast<std::size_t>(peer)]);
      }
      if (sparse) {
        finite = add_entries(context, layer.values) && finite;
        continue;
      }
      TensorView output = view_of(layer.values);
      output.shape = layer.shape;
      for (peer = 0; peer < world; ++peer) {
        layer.codec->decompress(part(), random_key(context, layer, peer, /*stage=*/0, 0), output,
                                peer == 0 ? WriteMode::kAssign : WriteMode::kAccumulate);
      }
      // Here and in add_entries() is where a gather-reduced gradient is divided by the number of
      // ranks.
      kernels::divide(layer.values, static_cast<float>(context.divisor));
      finite = finite && kernels::all_finite(layer.values);
    }
  } catch (const FrameError& error) {
    context.refusal->note(context.peers->group_rank(peer), error);
  }
  return finite;
}

// values = the mean of entries_, summed in rank order, a piece at a time while it is in cache.
// Whether all of it is finite.
bool GatherReduce::add_entries(const ReductionContext& context, std::span<float> values) const {
  bool finite = true;
  std::vector<std::size_t> next(entries_.size());
  for (std::size_t begin = 0; begin < values.size(); begin += kPiece) {
    const auto piece = values.subspan(begin, std::min(kPiece, values.size() - begin));
    const std::size_t end = begin + piece.size();
    std::ranges::fill(piece, 0.0f);
    for (std::size_t p = 0; p < entries_.size(); ++p) {
      const SparseEntries& entries = entries_[p];
      std::size_t& at = next[p];
      for (; at < entries.size() && entries.indices[at] < end; ++at) {
        piece[entries.indices[at] - begin] += entries.values[at];
      }
    }
    kernels::divide(piece, static_cast<float>(context.divisor));
    finite = finite && kernels::all_finite(piece);
  }
  return finite;
}

}  // namespace thinwire::comm
