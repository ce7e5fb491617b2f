// What every reduction is told about the exchange that it makes, and what it works on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "thinwire/comm/average/memory/second_residual.h"
#include "thinwire/comm/average/reduce/phase_span.h"
#include "thinwire/comm/average/reduce/workspace.h"
#include "thinwire/comm/wire/peers.h"
#include "thinwire/comm/wire/refusal.h"
#include "thinwire/common/philox.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire::comm {

// One exchange: equal on all ranks but for the peers, the timeline and the seconds.
struct ReductionContext {
  const Peers* peers = nullptr;
  Refusal* refusal = nullptr;      // receives the frames that did not fit
  Workspace* workspace = nullptr;  // whose arena is not reset before the exchange is over
  // The sum over the peers is divided by this: the ranks whose gradients are in it.
  int divisor = 1;
  std::uint64_t sequence = 0;  // number of the exchange on this group
  std::uint64_t step = 0;      // training step, for the random numbers of the codecs
  std::uint64_t seed = 0;
  std::uint64_t layout = 0;  // hash of what is exchanged, see Frame
  Timeline* timeline = nullptr;
  std::string track = {};  // the timeline's track, "bucket 0"
  PhaseSeconds* phases = nullptr;

  // The same exchange in another of its stages, whose frames must not be taken for each other.
  ReductionContext stage(std::uint64_t number) const;
};

// One layer in an exchange, or a run of its elements. `values` holds this rank's gradient and
// receives the mean of what the ranks hold, which is values + carried_factor · carried.
struct LayerValues {
  std::uint32_t id = 0;  // equal on all ranks, derived from the parameter's name
  std::string_view name = {};
  const Codec* codec = nullptr;
  std::span<const std::int64_t> shape = {};  // of the whole layer; empty where `values` is a part
  std::span<float> values = {};
  // What the encodings before this one lost, added where the gradient is read for encoding and in
  // cache; empty: nothing.
  std::span<const float> carried = {};
  float carried_factor = 1;
  // Empty, or of the size of `values` and usually the same memory: receives what the local encoding
  // of x lost, x − D(C(x)), until that moves to `kept`.
  std::span<float> residual = {};
  // Empty, or of the same size: where the loss is kept for the next step, usually the memory of
  // `carried`.
  std::span<float> kept = {};
  // Becomes false where the residual is not finite.
  bool* residual_finite = nullptr;
  std::int64_t first_element = 0;  // index within the layer of values[0]
  // Where an owner that encodes a mean keeps what that loses; null: nowhere. The factor is that of
  // the kept residual when it is added to the next mean.
  SecondResidual* second = nullptr;
  float second_decay = 1;

  // The loss is where the mean will be, so that this has to wait.
  bool holds_residual() const { return !residual.empty() && residual.data() == values.data(); }
};

// into = values + carried_factor · carried, of the elements from `begin` on; `into` may be the
// values. Returns whether all of it is finite.
bool add_carried(const LayerValues& layer, std::int64_t begin, std::span<float> into);

// Notes whether a part of the layer's residual is finite.
void note_residual(const LayerValues& layer, std::span<const float> part);

// Moves the loss of some elements to where it is kept, before the mean is written. A layer whose
// loss is not finite keeps its earlier one.
void keep_residual(const LayerValues& layer, std::int64_t begin, std::int64_t numel);
void keep_residual(const LayerValues& layer);

// Encodes `numel` elements from `begin` on and, where the layer keeps a residual, writes what was
// lost. Returns the bytes written to `out`.
std::size_t encode_piece(const ReductionContext& context, const LayerValues& layer,
                         std::int64_t begin, std::int64_t numel, std::span<std::byte> out);

// The key of the random numbers of the encoding that `peer` makes of a layer's elements from
// values[begin] on; stage as in RandomKey.
RandomKey random_key(const ReductionContext& context, const LayerValues& layer, int peer,
                     std::uint32_t stage, std::int64_t begin);

}  // namespace thinwire::comm
