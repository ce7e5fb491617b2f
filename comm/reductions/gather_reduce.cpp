#include "thinwire/comm/reductions/gather_reduce.h"

#include <boost/endian/conversion.hpp>
#include <cstring>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// A payload: the length of every layer's part (u64, little-endian), then the parts.
constexpr std::size_t kLengthBytes = sizeof(std::uint64_t);

}  // namespace

GatherReduce::GatherReduce(std::span<const PartitionLayer> layers)
    : most_(kLengthBytes * layers.size()) {
  for (const PartitionLayer& layer : layers) {
    most_ += layer.codec->max_compressed_bytes(layer.numel, DType::kFloat32);
    numel_ += layer.numel;
  }
}

std::size_t GatherReduce::run(const Exchange& exchange, std::span<const LayerValues> layers) {
  encode(exchange, layers);
  std::vector<FrameHeader> expected;
  for (int p = 0; p < exchange.peers->size(); ++p) {
    expected.push_back(header_of(exchange, static_cast<std::uint64_t>(numel_), p, 0));
  }
  const ReceivedFrames received = swap_frames(exchange, std::span(&own_, 1), expected,
                                              kFrameHeaderBytes + most_, "gather_reduce");
  if (received.complete) decode_mean(exchange, layers, received);
  return received.sent;
}

void GatherReduce::encode(const Exchange& exchange, std::span<const LayerValues> layers) {
  Timeline::Span span(exchange.timeline, exchange.track, "COMPRESS");
  const auto payload = own_.payload(most_);
  std::size_t at = kLengthBytes * layers.size();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto bytes =
        encode_piece(exchange, layers[i], 0, static_cast<std::int64_t>(layers[i].values.size()),
                     payload.subspan(at));
    const auto length = boost::endian::native_to_little(static_cast<std::uint64_t>(bytes));
    std::memcpy(payload.data() + kLengthBytes * i, &length, kLengthBytes);
    at += bytes;
  }
  own_.finish(header_of(exchange, static_cast<std::uint64_t>(numel_), exchange.peers->rank(), 0),
              at);
}

void GatherReduce::decode_mean(const Exchange& exchange, std::span<const LayerValues> layers,
                               const ReceivedFrames& received) {
  Timeline::Span span(exchange.timeline, exchange.track, "DECOMPRESS");
  for (int p = 0; p < exchange.peers->size(); ++p) {
    try {
      decode_payload(exchange, layers, p,
                     p == exchange.peers->rank() ? own_.payload()
                                                 : received.payloads[static_cast<std::size_t>(p)]);
    } catch (const FrameError& error) {
      exchange.refusal->note(exchange.peers->group_rank(p), error);
      return;
    }
  }
  // The one place where a gather-reduced gradient is divided by the number of ranks.
  for (const LayerValues& layer : layers) {
    for (float& value : layer.values) value /= static_cast<float>(exchange.divisor);
  }
}

void GatherReduce::decode_payload(const Exchange& exchange, std::span<const LayerValues> layers,
                                  int peer, std::span<const std::byte> payload) {
  std::size_t at = kLengthBytes * layers.size();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    std::uint64_t length = 0;
    if (payload.size() >= at) std::memcpy(&length, payload.data() + kLengthBytes * i, kLengthBytes);
    boost::endian::little_to_native_inplace(length);
    if (payload.size() < at || length > payload.size() - at) {
      throw FrameError(concat("layer ", i, " claims ", length, " bytes of a payload of ",
                              payload.size(), " from byte ", at, " on"));
    }
    TensorView output = view_of(layers[i].values);
    output.shape = layers[i].shape;
    layers[i].codec->decompress(payload.subspan(at, length),
                                random_key(exchange, layers[i], peer, /*stage=*/0, 0), output,
                                peer == 0 ? WriteMode::kAssign : WriteMode::kAccumulate);
    at += length;
  }
  if (at != payload.size()) {
    throw FrameError(concat("a payload has ", payload.size(), " bytes, its layers take ", at));
  }
}

}  // namespace thinwire::comm
