#include "thinwire/compressors/peft/pack.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numbers>

#include "thinwire/common/error.h"

namespace thinwire::peft {
namespace {

// The density in (low, high] nearest to `low` that is known to fit, to a millionth of the vector;
// `high` fits, `low` does not.
template <typename Fits>
double bisect(double low, double high, Fits fits) {
  while (high - low > 1e-6) {
    const double middle = (low + high) / 2;
    (fits(middle) ? high : low) = middle;
  }
  return high;
}

// The smallest density whose error is at most `target`. Errors need not fall all the way (a mean
// scale is best near 54 % for Gaussian deltas): the search climbs a ladder to the first rung that
// fits, and where none does it looks for the minimum around the best one.
template <typename ErrorOf>
std::optional<double> least_density(double target, ErrorOf error_of) {
  constexpr double kStep = std::numbers::sqrt2;
  const auto fits = [&](double density) { return error_of(density) <= target; };
  double below = 0, best = 1, least = std::numeric_limits<double>::infinity();
  for (int rung = 24; rung >= 0; --rung) {
    const double density = std::exp2(-rung / 2.0);
    const double error = error_of(density);
    if (error <= target) return bisect(below, density, fits);
    if (error < least) {
      best = density;
      least = error;
    }
    below = density;
  }
  double low = best / kStep, high = std::min(1.0, best * kStep);
  while (high - low > 1e-4) {
    const double left = low + (high - low) / 3, right = high - (high - low) / 3;
    const double left_error = error_of(left), right_error = error_of(right);
    if (left_error <= target) return bisect(best / kStep, left, fits);
    if (right_error <= target) return bisect(best / kStep, right, fits);
    (left_error < right_error ? high : low) = left_error < right_error ? right : left;
  }
  return std::nullopt;
}

// The largest density up to two thirds whose size fits. There a ternary vector is largest; beyond,
// it gets smaller again and, as a rule, worse.
template <typename Fits>
std::optional<double> most_density(Fits fits) {
  constexpr double kLargest = 2.0 / 3;
  if (fits(kLargest)) return kLargest;
  double low = 0, high = kLargest;
  std::optional<double> found;
  while (high - low > 1e-6) {
    const double middle = (low + high) / 2;
    const bool ok = fits(middle);
    if (ok) found = middle;
    (ok ? low : high) = middle;
  }
  return found;
}

double search_density(const DeltaSource& source, PackOptions options,
                      const std::string& base_fingerprint) {
  const auto trial = [&](double density) {
    options.density = density;
    TernaryDelta delta = make_ternary(source, options);
    delta.manifest.base_fingerprint = base_fingerprint;
    return delta;
  };
  if (options.target_error) {
    const double target = *options.target_error;
    const auto found =
        least_density(target, [&](double density) { return trial(density).relative_error; });
    check(found.has_value(), "no density has a relative error of ", target, " or less");
    return *found;
  }
  const std::uint64_t target = options.target_bytes.value();
  const auto bytes = [](const TernaryDelta& delta) {
    return packed_bytes(delta.manifest, delta.planes.view());
  };
  const auto found = most_density([&](double density) { return bytes(trial(density)) <= target; });
  // Signs alone, where all magnitudes are alike.
  const TernaryDelta all = trial(1);
  const bool all_fits = bytes(all) <= target;
  check(found || all_fits, "no density gives a file of ", target, " bytes or less");
  if (!found || (all_fits && all.relative_error < trial(*found).relative_error)) return 1;
  return *found;
}

}  // namespace

std::string part_name(Granularity granularity, const std::string& tensor) {
  switch (granularity) {
    case Granularity::kTensor:
      return tensor;
    case Granularity::kGroup:
      if (tensor.find("lora_A") != std::string::npos ||
          tensor.find("lora_embedding_A") != std::string::npos)
        return "A";
      if (tensor.find("lora_B") != std::string::npos ||
          tensor.find("lora_embedding_B") != std::string::npos)
        return "B";
      return "other";
    case Granularity::kGlobal:
      break;
  }
  return "all";
}

const char* name_of(Granularity granularity) {
  switch (granularity) {
    case Granularity::kGlobal:
      return "global";
    case Granularity::kGroup:
      return "group";
    case Granularity::kTensor:
      return "tensor";
  }
  return "";
}

Granularity parse_granularity(const std::string& text) {
  for (const auto value : {Granularity::kGlobal, Granularity::kGroup, Granularity::kTensor})
    if (text == name_of(value)) return value;
  throw InvalidArgument(concat("granularity must be global, tensor or group, got '", text, "'"));
}

TernaryDelta make_ternary(const DeltaSource& source, const PackOptions& options,
                          const Progress& progress) {
  TernaryDelta result;
  Manifest& manifest = result.manifest;
  manifest.tensors = source.tensors;
  manifest.numel = source.numel();
  manifest.granularity = name_of(options.granularity);
  manifest.scale_rule = options.scale.str();
  manifest.density = options.density;
  manifest.parent = options.parent_id;
  manifest.adapter_config = source.adapter_config;
  manifest.source_metadata = source.tuned.metadata();
  result.planes = TernaryPlanes(manifest.numel);

  std::map<std::string, std::size_t> index;
  std::vector<std::vector<DeltaPiece>> pieces;
  for (std::size_t i = 0; i < manifest.tensors.size(); ++i) {
    PackedTensor& tensor = manifest.tensors[i];
    if (tensor.storage != Storage::kTernary) continue;
    const std::string name = part_name(options.granularity, tensor.info.name);
    const auto [at, fresh] = index.emplace(name, pieces.size());
    if (fresh) {
      manifest.parts.push_back({name});
      pieces.emplace_back();
    }
    tensor.part = at->second;
    pieces[tensor.part].push_back(source.piece(i));
  }

  std::int64_t done = 0;
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    PackedPart& part = manifest.parts[i];
    for (const DeltaPiece& piece : pieces[i]) part.numel += piece.tuned.numel;
    const auto tell = [&](std::int64_t entries) {
      if (progress) progress(done + entries, 3 * manifest.numel);
    };
    const DeltaStatistics found =
        select_largest(pieces[i], keep_count(options.density, part.numel), result.planes, tell);
    done += 3 * part.numel;
    const double scale = options.scale.scale(found);
    part.scale = static_cast<float>(scale);
    check(std::isfinite(part.scale), "the scale of part '", part.name, "' overflows float32");
    part.kept = found.kept;
    part.standard_deviation = found.standard_deviation;
    const double squared = std::max(0.0, found.relative_squared_error(part.scale));
    part.relative_error = std::sqrt(squared);
    error += squared * found.squared_norm;
    norm += found.squared_norm;
    if (const std::string warning = options.scale.repeat_warning(found); !warning.empty())
      result.warnings.push_back(concat("part '", part.name, "': ", warning));
  }
  result.relative_error = norm > 0 ? std::sqrt(error / norm) : 0;
  return result;
}

PackResult pack(const DeltaSource& source, const std::filesystem::path& out,
                const PackOptions& options, const Progress& progress) {
  check(!options.target_bytes || !options.target_error,
        "give a target for the bytes or one for the error, not both");
  check(!options.target_error || (*options.target_error > 0 && *options.target_error < 1),
        "the target error must be in (0, 1), got ", options.target_error.value_or(0));
  check(options.parent_id.empty() || source.base.has_value(),
        "only deltas against a base file can continue a parent");
  // Before the long work rather than after it.
  if (!options.overwrite && std::filesystem::exists(out))
    throw FileError(concat(out.string(), " exists already and is not overwritten"));

  const std::string base_fingerprint = source.base ? fingerprint(*source.base) : "";
  PackOptions chosen = options;
  if (options.target_bytes || options.target_error)
    chosen.density = search_density(source, options, base_fingerprint);
  TernaryDelta delta = make_ternary(source, chosen, progress);
  delta.manifest.base_fingerprint = base_fingerprint;
  PackResult result{chosen.density,
                    delta.relative_error,
                    delta.manifest.numel,
                    delta.manifest.kept(),
                    0,
                    "",
                    std::move(delta.warnings)};
  const auto bytes_of = [&](std::size_t tensor) {
    return source.tuned.bytes(source.tensors[tensor].info.name);
  };
  result.id = write_packed(out, delta.manifest, delta.planes.view(), bytes_of, options.overwrite);
  result.file_bytes = std::filesystem::file_size(out);
  return result;
}

}  // namespace thinwire::peft
