// What a candidate of L-GreCo costs on the network and on the processor.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "thinwire/comm/link/link_model.h"
#include "thinwire/common/spec.h"
#include "thinwire/common/stopwatch.h"

namespace thinwire {

// Bytes that one rank sends for a layer, without frames: uncompressed and quantised layers
// 2 (W − 1) / W times their payload, powersgd's factors as much, the entries of topk and ternary
// W − 1 times, or to owners and on from there where that is less
// (comm/average/reduce/sparse_reduce.h). Uncompressed elements take `element_bytes`. Whole, rounded
// up. One rank alone sends nothing; it is given the bytes of two, so that its plan is not a whim.
// Thread-safe.
double candidate_bytes(const Spec& spec, std::span<const std::int64_t> shape, int world,
                       std::size_t element_bytes = sizeof(float));

// Seconds that so many bytes of one rank take on the wire: of all_to_all, which is how they travel,
// uncompressed layers beside compressed ones too. The exchanges' latency is left out: a bucket pays
// it, whatever its layers choose. Thread-safe.
double wire_seconds(double sent_bytes, const comm::BackendLink& link);

// Seconds of encoding and decoding `numel` float32 elements on one of `world` ranks. Thread-safe.
double coding_seconds(const Spec& spec, std::int64_t numel, const comm::CodecCost& cost, int world);

// The codec's cost by its link model: that of the spec itself, else of the spec of the same codec
// with the nearest bits, density or rank, else an assumption that is slow rather than fast
// (comm::CodecFacts::kAssumedCost). Identity costs nothing, as an all-reduce needs no codec. Throws
// InvalidArgument for a spec that names no codec.
comm::CodecCost codec_cost(const Spec& spec, const comm::LinkModel& model);

// The same from a clock, which tells seconds: the codec on a small layer of random numbers, the
// fastest of a few runs, about a millisecond in all. Not deterministic.
comm::CodecCost measured_codec_cost(const Spec& spec,
                                    const std::function<double()>& clock = clock_seconds);

}  // namespace thinwire
