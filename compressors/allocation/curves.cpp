#include "thinwire/compressors/allocation/curves.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/common/shape.h"
#include "thinwire/compressors/allocation/curve_errors.h"
#include "thinwire/compressors/allocation/low_rank_energy.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/codecs/powersgd.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/compressors/codecs/ternary.h"
#include "thinwire/compressors/codecs/topk.h"

namespace thinwire::lgreco {
namespace {

// Ten steps to each side of the reference: 26 % from one density to the next.
constexpr int kDensitySteps = 10;
constexpr std::int64_t kMostRanks = 32;

std::int64_t rows_of(std::span<const std::int64_t> shape) {
  return shape.empty() ? 1 : shape[0];
}

std::int64_t cols_of(std::span<const std::int64_t> shape) {
  return rows_of(shape) == 0 ? 0 : numel_of(shape) / rows_of(shape);
}

// Four digits are more than the density needs, and keep the spec readable.
double rounded(double density) {
  std::array<char, 32> text;
  const auto end =
      std::to_chars(text.data(), text.data() + text.size(), density, std::chars_format::general, 4)
          .ptr;
  std::from_chars(text.data(), end, density);
  return density;
}

std::vector<double> values_around(const Spec& reference, std::span<const std::int64_t> shape) {
  const double middle = parameter_value(reference);
  std::vector<double> values;
  if (reference.name == "quantize") {
    for (int bits = 2; bits <= 8; ++bits) values.push_back(bits);
  } else if (reference.name == "topk" || reference.name == "ternary") {
    for (int i = -kDensitySteps; i <= kDensitySteps; ++i) {
      const double density = middle * std::pow(10.0, static_cast<double>(i) / kDensitySteps);
      if (density <= 1) values.push_back(rounded(density));
    }
  } else {
    const auto rank = static_cast<std::int64_t>(middle);
    const std::int64_t least = std::max<std::int64_t>(1, (rank + 3) / 4);
    const std::int64_t most = std::min<std::int64_t>(4 * rank, kMaxPowerSgdRank);
    const double factor =
        std::pow(static_cast<double>(most) / static_cast<double>(least), 1.0 / (kMostRanks - 1));
    double next = static_cast<double>(least);
    for (std::int64_t r = least; r <= most; ++r) {
      if (most - least >= kMostRanks && static_cast<double>(r) < next - 1e-9) continue;
      values.push_back(static_cast<double>(r));
      while (next <= static_cast<double>(r) + 1e-9) next *= factor;
    }
  }
  values.push_back(middle);
  if (reference.name == "powersgd") {
    // The codec sends the layer as it is, see low_rank_shape().
    const auto saves_nothing = [&](double rank) {
      return low_rank_shape(shape, DType::kFloat32, static_cast<int>(rank)).rank == 0;
    };
    std::erase_if(values, saves_nothing);
  }
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

double bytes_of(const Spec& spec, std::span<const std::int64_t> shape, const CurveCosts& costs) {
  return costs.bytes ? costs.bytes(spec, shape) : payload_bytes(spec, shape);
}

// Bytes of k indices below n, spread at random, with Golomb-Rice coding: at least a bit an index.
double index_bytes(double k, double n) {
  const double density = k / n;
  const double entropy =
      density >= 1
          ? 0
          : -(density * std::log2(density) + (1 - density) * std::log2(1 - density)) / density;
  constexpr double kCodersLoss = 0.03, kForm = 1;
  return kForm + std::ceil(k * std::max(1.0, entropy + kCodersLoss) / 8);
}

// Codecs whose errors follow from the magnitudes alone, see SelectionErrors.
bool is_exact_topk(const Spec& spec) {
  return spec.name == "topk" && !topk_options(spec).sampled;
}
bool is_ternary_of_mean(const Spec& spec) {
  return spec.name == "ternary" && !ternary_options(spec).alpha;
}

std::vector<double> squared_errors(const std::vector<Spec>& specs, std::span<const float> gradient,
                                   std::span<const std::int64_t> shape) {
  // The candidates of one way to measure: their places in the set, and entries kept, ranks, codecs.
  std::vector<std::size_t> selecting, low_rank, measured;
  std::vector<std::int64_t> counts, ranks;
  std::vector<CodecPtr> codecs;
  ValueType values = ValueType::kFloat32;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const Spec& spec = specs[i];
    if (spec.name == "identity") continue;
    if (is_exact_topk(spec) || is_ternary_of_mean(spec)) {
      selecting.push_back(i);
      counts.push_back(kept_count(parameter_value(spec), numel_of(shape)));
      // All candidates of topk store their values alike.
      if (spec.name == "topk") values = topk_options(spec).values;
    } else if (spec.name == "powersgd") {
      low_rank.push_back(i);
      ranks.push_back(static_cast<std::int64_t>(parameter_value(spec)));
    } else {
      measured.push_back(i);
      codecs.push_back(make_codec(spec));
    }
  }
  std::vector<double> errors(specs.size(), 0);
  if (!selecting.empty()) {
    const auto found = selection_squared_errors(gradient, counts, values);
    for (std::size_t i = 0; i < selecting.size(); ++i) {
      const bool ternary = specs[selecting[i]].name == "ternary";
      errors[selecting[i]] = ternary ? found[i].ternary : found[i].topk;
    }
  }
  const auto spread = [&](const std::vector<std::size_t>& places, const std::vector<double>& from) {
    for (std::size_t i = 0; i < places.size(); ++i) errors[places[i]] = from[i];
  };
  if (!low_rank.empty()) {
    spread(low_rank, low_rank_squared_errors(gradient, rows_of(shape), cols_of(shape), ranks));
  }
  if (!measured.empty()) spread(measured, measured_squared_errors(gradient, codecs));
  return errors;
}

}  // namespace

double payload_bytes(const Spec& spec, std::span<const std::int64_t> shape) {
  if (spec.name == "powersgd") {
    const PowerSgdOptions options = powersgd_options(spec);
    const LowRankShape factors{rows_of(shape), cols_of(shape), options.rank};
    return options.iterations *
           static_cast<double>(factor_bytes(factors, *factor_codec(options.factors)));
  }
  const std::int64_t numel = numel_of(shape);
  const CodecPtr codec = make_codec(spec);
  const auto most = static_cast<double>(codec->max_compressed_bytes(numel, DType::kFloat32));
  if (numel == 0 || !(is_exact_topk(spec) || spec.name == "ternary")) return most;
  const auto kept = static_cast<double>(kept_count(parameter_value(spec), numel));
  const double values = spec.name == "ternary"
                            ? std::ceil(kept / 8)
                            : kept * static_cast<double>(size_of(topk_options(spec).values));
  constexpr double kHead = 4;
  return std::min(most, kHead + index_bytes(kept, static_cast<double>(numel)) + values);
}

CandidateSet candidate_set(const Policy& policy, std::span<const std::int64_t> shape) {
  CandidateSet set;
  set.specs.push_back(Spec::parse("identity"));
  // Values in bf16 cost topk about a millionth of a layer's energy, so values in float32 would
  // never be chosen beside them. Ternary entries are a third the size of topk's and take over where
  // topk's would be many.
  for (const char* text : {"quantize", "topk(values=bf16)", "ternary(density=0.03)", "powersgd"}) {
    const Spec other = Spec::parse(text);
    if (policy.family != Family::kMixed && name_of(policy.family) != other.name) continue;
    const bool of_reference = policy.reference.name == other.name;
    const Spec& base = of_reference ? policy.reference : other;
    for (double value : values_around(base, shape)) {
      if (of_reference && value == parameter_value(base)) set.reference = set.specs.size();
      set.specs.push_back(with_parameter(base, value));
    }
  }
  return set;
}

CurveMeasurement measure_curve(const std::string& name, std::span<const float> gradient,
                               std::span<const std::int64_t> shape, const Policy& policy) {
  check(numel_of(shape) == static_cast<std::int64_t>(gradient.size()), "layer '", name, "' has ",
        numel_of(shape), " elements by its shape, but its gradient has ", gradient.size());
  double squared_norm = 0;
  for (float x : gradient) squared_norm += static_cast<double>(x) * x;
  check(std::isfinite(squared_norm), "the gradient of layer '", name, "' holds NaN or infinity");
  return {squared_norm, squared_errors(candidate_set(policy, shape).specs, gradient, shape)};
}

Layer curve_of(const std::string& name, std::span<const std::int64_t> shape, const Policy& policy,
               const CurveMeasurement& measurement, const CurveCosts& costs) {
  const CandidateSet set = candidate_set(policy, shape);
  check(measurement.squared_errors.size() == set.specs.size(), "layer '", name, "' has ",
        set.specs.size(), " candidates, but ", measurement.squared_errors.size(), " were measured");
  const auto measured = [&](double squared) {
    return policy.measure == ErrorMeasure::kL2 ? std::sqrt(squared) : squared;
  };
  Layer layer{name, numel_of(shape), 0, {}, measured(measurement.squared_norm)};
  const bool silent = measurement.squared_norm == 0;
  for (std::size_t i = 0; i < set.specs.size(); ++i) {
    if (silent && i != set.reference) continue;
    const Candidate candidate{set.specs[i].str(), bytes_of(set.specs[i], shape, costs),
                              measured(measurement.squared_errors[i]),
                              costs.seconds ? costs.seconds(set.specs[i], shape) : 0};
    if (i == set.reference) {
      layer.reference = layer.candidates.size();
    } else if (i > 0) {
      const bool useless = candidate.error >= layer.norm;
      const bool larger = candidate.bytes >= layer.candidates.front().bytes;
      if (useless || larger) continue;
    }
    layer.candidates.push_back(candidate);
  }
  return layer;
}

Layer rate_distortion_curve(const std::string& name, std::span<const float> gradient,
                            std::span<const std::int64_t> shape, const Policy& policy,
                            const CurveCosts& costs) {
  return curve_of(name, shape, policy, measure_curve(name, gradient, shape, policy), costs);
}

Layer uncompressed_layer(const std::string& name, std::span<const std::int64_t> shape,
                         const CurveCosts& costs) {
  const Spec identity = Spec::parse("identity");
  return {name,
          numel_of(shape),
          0,
          {{identity.str(), bytes_of(identity, shape, costs), 0,
            costs.seconds ? costs.seconds(identity, shape) : 0}},
          0};
}

}  // namespace thinwire::lgreco
