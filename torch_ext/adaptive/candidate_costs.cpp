#include "thinwire/torch_ext/adaptive/candidate_costs.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "thinwire/comm/average/selector.h"
#include "thinwire/common/philox.h"
#include "thinwire/common/shape.h"
#include "thinwire/compressors/allocation/curves.h"
#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire {
namespace {

// A layer of its own, for want of the bucket that it will travel in: the latencies and frames of
// that are the same whatever the layer's codec. One rank alone is given the costs of two.
comm::CodecUse layer_use(const Spec& spec, std::span<const std::int64_t> shape) {
  const CodecPtr codec = make_codec(spec);
  comm::CodecUse use = comm::use_of(*codec, numel_of(shape), DType::kFloat32, shape);
  if (use.facts.form == CodecFacts::Form::kSparse) {
    // What is expected, not the most.
    use.payload_bytes = static_cast<std::int64_t>(lgreco::payload_bytes(spec, shape));
  }
  return use;
}

// Seconds of the fastest of a few calls.
template <typename Call>
double fastest(const std::function<double()>& clock, const Call& call) {
  constexpr int kRuns = 3;
  double best = std::numeric_limits<double>::infinity();
  for (int run = 0; run < kRuns; ++run) {
    const double begin = clock();
    call();
    best = std::min(best, clock() - begin);
  }
  return best;
}

}  // namespace

double candidate_bytes(const Spec& spec, std::span<const std::int64_t> shape, int world,
                       std::size_t element_bytes) {
  comm::CodecUse use = layer_use(spec, shape);
  if (use.facts.id == CodecId::kIdentity) {
    use.payload_bytes = use.numel * static_cast<std::int64_t>(element_bytes);
  }
  const comm::ReductionPlace place = {.world = std::max(world, 2)};
  const comm::Strategy strategy = comm::usual_strategy(use, place.world, place.frame_bytes);
  return std::ceil(comm::sent_bytes(strategy, use, place));
}

double wire_seconds(double sent_bytes, const comm::BackendLink& link) {
  return sent_bytes * link.of(comm::Collective::kAllToAll).beta;
}

double coding_seconds(const Spec& spec, std::int64_t numel, const comm::CodecCost& cost,
                      int world) {
  comm::CodecUse use = layer_use(spec, std::array{numel});
  use.cost = cost;
  const comm::ReductionPlace place = {.world = std::max(world, 2)};
  const comm::Strategy strategy = comm::usual_strategy(use, place.world, place.frame_bytes);
  return comm::coding_seconds(strategy, use, place);
}

comm::CodecCost codec_cost(const Spec& spec, const comm::LinkModel& model) {
  if (spec.name == "identity") return {};
  if (const auto* cost = model.codec(make_codec(spec)->spec())) return *cost;
  const auto size_of = [](const Spec& of) { return std::log(lgreco::parameter_value(of)); };
  const bool has_size = lgreco::has_parameter(spec);
  const comm::CodecCost* nearest = nullptr;
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [text, cost] : model.codecs) {
    const Spec other = Spec::parse(text);
    if (other.name != spec.name) continue;
    const double distance = has_size ? std::abs(size_of(other) - size_of(spec)) : 0;
    if (distance < least) {
      least = distance;
      nearest = &cost;
    }
  }
  return nearest ? *nearest : comm::CodecUse::kAssumedCost;
}

comm::CodecCost measured_codec_cost(const Spec& spec, const std::function<double()>& clock) {
  if (spec.name == "identity") return {};
  // Larger ranks would not make the layer below smaller, so that it would be copied. Time grows
  // with the rank.
  constexpr double kMostRank = 32;
  if (spec.name == "powersgd" && lgreco::parameter_value(spec) > kMostRank) {
    comm::CodecCost cost = measured_codec_cost(lgreco::with_parameter(spec, kMostRank), clock);
    const double factor = lgreco::parameter_value(spec) / kMostRank;
    return {factor * cost.compress, factor * cost.decompress, factor * cost.accumulate};
  }
  constexpr std::int64_t kSide = 256;
  constexpr std::array<std::int64_t, 2> kShape = {kSide, kSide};
  const auto stream = PhiloxStream::of({.seed = 1});
  std::vector<float> values(kSide * kSide);
  for (std::size_t i = 0; i < values.size(); ++i) {
    // A product of two uniform numbers has a peak and tails, as gradients do.
    values[i] = static_cast<float>((stream.uniform(2 * i) - 0.5) * stream.uniform(2 * i + 1));
  }
  std::vector<float> decoded(values.size());
  ConstTensorView input = view_of(std::span<const float>(values));
  input.shape = kShape;
  TensorView output = view_of(std::span<float>(decoded));
  output.shape = kShape;
  const CodecPtr codec = make_codec(spec);
  std::vector<std::byte> bytes(codec->max_compressed_bytes(input.numel, DType::kFloat32));
  std::size_t written = 0;
  const double floats = sizeof(float) * static_cast<double>(values.size());
  const auto decode = [&](WriteMode mode) {
    codec->decompress(std::span(bytes).first(written), {}, output, mode);
  };
  comm::CodecCost cost;
  cost.compress = fastest(clock, [&] { written = codec->compress(input, {}, bytes); }) / floats;
  cost.decompress = fastest(clock, [&] { decode(WriteMode::kAssign); }) / floats;
  cost.accumulate = fastest(clock, [&] { decode(WriteMode::kAccumulate); }) / floats;
  return cost;
}

}  // namespace thinwire
