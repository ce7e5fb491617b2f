// What every reduction is told about the exchange that it makes, and what it works on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/common/philox.h"
#include "thinwire/common/timeline.h"
#include "thinwire/compressors/codec.h"

namespace thinwire::comm {

// One exchange: equal on all ranks but for `group`'s rank and the timeline.
struct Exchange {
  c10d::ProcessGroup& group;
  std::uint64_t sequence = 0;  // number of the exchange on this group
  std::uint64_t step = 0;      // training step, for the random numbers of the codecs
  std::uint64_t seed = 0;
  std::uint64_t layout = 0;  // hash of what is exchanged, see Frame
  Timeline* timeline = nullptr;
  std::string track;  // the timeline's track, "bucket 0"
};

// One layer in an exchange. `values` holds this rank's (corrected) gradient and receives the mean.
struct LayerValues {
  std::uint32_t id = 0;  // equal on all ranks, derived from the parameter's name
  const Codec* codec = nullptr;
  std::span<const std::int64_t> shape;
  std::span<float> values;
  // Empty, or of the size of `values`: receives what the local encoding lost, values −
  // D(C(values)).
  std::span<float> residual;
};

// Encodes `numel` elements from `begin` on and, where the layer keeps a residual, writes what was
// lost. Returns the bytes written to `out`.
std::size_t encode_piece(const Exchange& exchange, const LayerValues& layer, std::int64_t begin,
                         std::int64_t numel, std::span<std::byte> out);

// The key of the random numbers of a layer's encoding; stage as in RandomKey.
RandomKey random_key(const Exchange& exchange, std::uint32_t layer_id, int rank,
                     std::uint32_t stage, std::int64_t first_element);

}  // namespace thinwire::comm
