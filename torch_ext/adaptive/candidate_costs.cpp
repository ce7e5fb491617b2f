#include "thinwire/torch_ext/adaptive/candidate_costs.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "thinwire/comm/average/reduce/sparse_reduce.h"
#include "thinwire/comm/average/selector.h"
#include "thinwire/common/philox.h"
#include "thinwire/compressors/allocation/curves.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/codecs/sparse_values.h"

namespace thinwire {
namespace {

using comm::Collective;

// How a codec's payloads are averaged, see comm/average: decoded by owners, by everyone, or
// added as they are.
enum class Way { kOwners, kEveryone, kAdded };

Way way_of(const Spec& spec) {
  if (spec.name == "powersgd" || spec.name == "identity") return Way::kAdded;
  return spec.name == "topk" || spec.name == "ternary" ? Way::kEveryone : Way::kOwners;
}

// Seconds of the fastest of a few calls.
template <typename Call>
double fastest(const Call& call) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRuns = 3;
  double best = std::numeric_limits<double>::infinity();
  for (int run = 0; run < kRuns; ++run) {
    const auto begin = Clock::now();
    call();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

}  // namespace

double candidate_bytes(const Spec& spec, std::span<const std::int64_t> shape, int world,
                       std::size_t element_bytes) {
  const std::int64_t numel =
      std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  const double payload = spec.name == "identity"
                             ? static_cast<double>(element_bytes) * static_cast<double>(numel)
                             : lgreco::payload_bytes(spec, shape);
  const int ranks = std::max(world, 2);
  if (way_of(spec) == Way::kEveryone) {
    const std::int64_t entries = kept_count(lgreco::parameter_value(spec), numel);
    return std::ceil(std::min((ranks - 1) * payload, comm::bytes_by_owners(numel, entries, ranks)));
  }
  return std::ceil(2.0 * (ranks - 1) / ranks * payload);
}

double wire_seconds(double sent_bytes, const comm::BackendLink& link) {
  return sent_bytes * link.of(Collective::kAllToAll).beta;
}

double coding_seconds(const Spec& spec, std::int64_t numel, const comm::CodecCost& cost,
                      int world) {
  const double floats = sizeof(float) * static_cast<double>(numel);
  switch (way_of(spec)) {
    case Way::kOwners:
      return floats * (cost.compress + cost.accumulate + cost.compress / world + cost.decompress);
    case Way::kEveryone:
      return floats * (cost.compress + world * cost.accumulate);
    case Way::kAdded:
      break;
  }
  return floats * (cost.compress + cost.decompress);
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
  return nearest ? *nearest : comm::CodecFacts::kAssumedCost;
}

comm::CodecCost measured_codec_cost(const Spec& spec) {
  if (spec.name == "identity") return {};
  // Larger ranks would not make the layer below smaller, so that it would be copied. Time grows
  // with the rank.
  constexpr double kMostRank = 32;
  if (spec.name == "powersgd" && lgreco::parameter_value(spec) > kMostRank) {
    comm::CodecCost cost = measured_codec_cost(lgreco::with_parameter(spec, kMostRank));
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
  cost.compress = fastest([&] { written = codec->compress(input, {}, bytes); }) / floats;
  cost.decompress = fastest([&] { decode(WriteMode::kAssign); }) / floats;
  cost.accumulate = fastest([&] { decode(WriteMode::kAccumulate); }) / floats;
  return cost;
}

}  // namespace thinwire
