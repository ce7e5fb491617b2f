#include "thinwire/comm/reductions/gather_reduce.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <boost/endian/conversion.hpp>
#include <cstring>

#include "thinwire/comm/failure.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codec_table.h"
#include "thinwire/compressors/frame.h"

namespace thinwire::comm {
namespace {

constexpr std::size_t kLengthBytes = sizeof(std::uint64_t);

// What a frame of `sender` must say; its size is only known from the frame itself.
FrameHeader header_of(const Exchange& exchange, std::span<const LayerValues> layers, int sender) {
  std::uint64_t numel = 0;
  for (const LayerValues& layer : layers) numel += layer.values.size();
  return {.codec_id = kMixedCodecs,
          .sender = static_cast<std::uint32_t>(sender),
          .layout = exchange.layout,
          .sequence = exchange.sequence,
          .numel = numel};
}

std::span<std::byte> bytes_of(at::Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.mutable_data_ptr()),
          static_cast<std::size_t>(tensor.numel())};
}

}  // namespace

GatherReduce::GatherReduce(std::span<const LayerValues> layers, int rank, int world)
    : rank_(rank), world_(world), layer_bytes_(layers.size()) {
  std::size_t most = kFrameHeaderBytes + kLengthBytes * layers.size();
  for (const LayerValues& layer : layers) {
    most += layer.codec->max_compressed_bytes(static_cast<std::int64_t>(layer.values.size()),
                                              DType::kFloat32);
  }
  own_.resize(most);
}

std::size_t GatherReduce::run(const Exchange& exchange, std::span<const LayerValues> layers) {
  // The payload: the length of every layer's part (u64, little-endian), then the parts.
  std::size_t frame_bytes = kFrameHeaderBytes + kLengthBytes * layers.size();
  {
    Timeline::Span span(exchange.timeline, exchange.track, "COMPRESS");
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const auto bytes =
          encode_piece(exchange, layers[i], 0, static_cast<std::int64_t>(layers[i].values.size()),
                       std::span(own_).subspan(frame_bytes));
      const auto length = boost::endian::native_to_little(static_cast<std::uint64_t>(bytes));
      std::memcpy(own_.data() + kFrameHeaderBytes + kLengthBytes * i, &length, kLengthBytes);
      frame_bytes += bytes;
    }
    const std::span<std::byte> frame(own_.data(), frame_bytes);
    write_frame_header(header_of(exchange, layers, rank_), frame.subspan(kFrameHeaderBytes), frame);
  }
  const std::span<const std::byte> own(own_.data(), frame_bytes);
  std::vector<std::span<const std::byte>> frames(static_cast<std::size_t>(world_), own);
  at::Tensor received;
  if (world_ > 1) {
    Timeline::Span span(exchange.timeline, exchange.track, "EXCHANGE",
                        static_cast<std::int64_t>(frame_bytes) * (world_ - 1));
    at::Tensor my_size = at::empty({1}, at::kLong);
    at::Tensor sizes = at::empty({world_}, at::kLong);
    *my_size.mutable_data_ptr<std::int64_t>() = static_cast<std::int64_t>(frame_bytes);
    wait(exchange.group, exchange.group._allgather_base(sizes, my_size), "gather_reduce",
         exchange.sequence);

    std::vector<std::int64_t> in_sizes(sizes.const_data_ptr<std::int64_t>(),
                                       sizes.const_data_ptr<std::int64_t>() + world_);
    std::vector<std::int64_t> out_sizes(frames.size(), static_cast<std::int64_t>(frame_bytes));
    in_sizes[static_cast<std::size_t>(rank_)] = out_sizes[static_cast<std::size_t>(rank_)] = 0;
    std::int64_t total = 0;
    for (int r = 0; r < world_; ++r) {
      const auto size = in_sizes[static_cast<std::size_t>(r)];
      // Every rank encodes the same layers, so none can need more than this rank could.
      if (size < 0 || size > static_cast<std::int64_t>(own_.size())) {
        throw FrameError(concat("gather_reduce #", exchange.sequence, ": rank ", r, " announces ",
                                size, " bytes, these layers need at most ", own_.size()));
      }
      total += size;
    }
    received = at::empty({total}, at::kByte);
    at::Tensor sent = at::empty({static_cast<std::int64_t>(frame_bytes) * (world_ - 1)}, at::kByte);
    for (int copy = 0; copy < world_ - 1; ++copy) {
      std::memcpy(bytes_of(sent).data() + static_cast<std::size_t>(copy) * frame_bytes, own.data(),
                  frame_bytes);
    }
    wait(exchange.group, exchange.group.alltoall_base(received, sent, in_sizes, out_sizes),
         "gather_reduce", exchange.sequence);
    std::size_t at = 0;
    for (std::size_t r = 0; r < frames.size(); ++r) {
      if (static_cast<int>(r) == rank_) continue;
      frames[r] = bytes_of(received).subspan(at, static_cast<std::size_t>(in_sizes[r]));
      at += frames[r].size();
    }
  }
  for (int r = 0; r < world_; ++r) {
    if (r == rank_) continue;
    auto& frame = frames[static_cast<std::size_t>(r)];
    const FrameHeader found = read_frame_header(frame);
    FrameHeader expected = header_of(exchange, layers, r);
    expected.payload_bytes = frame.size() - kFrameHeaderBytes;
    verify_frame(found, expected, frame.subspan(kFrameHeaderBytes));
  }
  for (auto& frame : frames) frame = frame.subspan(kFrameHeaderBytes);
  decode_mean(exchange, layers, frames);
  return (frame_bytes + sizeof(std::int64_t)) * static_cast<std::size_t>(world_ - 1);
}

void GatherReduce::decode_mean(const Exchange& exchange, std::span<const LayerValues> layers,
                               const std::vector<std::span<const std::byte>>& payloads) {
  Timeline::Span span(exchange.timeline, exchange.track, "DECOMPRESS");
  for (int r = 0; r < world_; ++r) {
    const auto payload = payloads[static_cast<std::size_t>(r)];
    std::size_t at = kLengthBytes * layers.size();
    for (std::size_t i = 0; i < layers.size(); ++i) {
      std::uint64_t length = 0;
      std::memcpy(&length, payload.data() + kLengthBytes * i, kLengthBytes);
      boost::endian::little_to_native_inplace(length);
      if (length > payload.size() - at) {
        throw FrameError(concat("gather_reduce #", exchange.sequence, ": layer ", i, " of rank ", r,
                                " claims ", length, " bytes, ", payload.size() - at, " are left"));
      }
      TensorView output = view_of(layers[i].values);
      output.shape = layers[i].shape;
      layers[i].codec->decompress(payload.subspan(at, length),
                                  random_key(exchange, layers[i].id, r, 0, 0), output,
                                  r == 0 ? WriteMode::kAssign : WriteMode::kAccumulate);
      at += length;
    }
  }
  // The one place where a gather-reduced gradient is divided by the number of ranks.
  for (const LayerValues& layer : layers) {
    for (float& value : layer.values) value /= static_cast<float>(world_);
  }
}

}  // namespace thinwire::comm
