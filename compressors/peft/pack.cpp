#include "thinwire/compressors/peft/pack.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/adapter_types.h"
#include "thinwire/compressors/peft/density_search.h"

namespace thinwire::peft {
namespace {

// Entries that share a threshold and a scale, with what one reading of them told.
struct SharedPart {
  PackedPart part;
  std::vector<DeltaPiece> pieces;
  MagnitudeCurve curve;
};

// Told the entries of one reading, tells the caller those of all.
class PackMeter {
 public:
  PackMeter(const Progress& progress, std::int64_t total) : progress_(progress), total_(total) {}
  std::function<void(std::int64_t)> callback() {
    if (!progress_) return {};
    return [this](std::int64_t entries) {
      done_ = std::min(done_ + entries, total_);
      progress_(done_, total_);
    };
  }

 private:
  const Progress& progress_;
  std::int64_t total_, done_ = 0;
};

Granularity granularity_of(const DeltaSource& source, const PackOptions& options) {
  if (options.granularity) return *options.granularity;
  std::string role;
  for (const PackedTensor& tensor : source.tensors) {
    if (tensor.storage != Storage::kTernary) continue;
    const std::string other = role_of(tensor.info.name);
    if (!role.empty() && role != other) return Granularity::kGroup;
    role = other;
  }
  return Granularity::kGlobal;
}

// Reads the source once.
class Packer {
 public:
  Packer(const DeltaSource& source, const PackOptions& options, const Progress& progress);

  // |delta - ternary| / |delta| at a density, from the curves alone; never too small.
  double error_at(double density) const;
  // What -p log p - (1-p) log (1-p) + p bits an entry make of it, in bytes.
  double ideal_bytes_at(double density) const;
  TernaryDelta select(double density);
  int selections() const { return selections_; }

 private:
  const PackOptions& options_;
  PackMeter meter_;
  Manifest manifest_;
  std::vector<SharedPart> parts_;
  int selections_ = 0;
};

Packer::Packer(const DeltaSource& source, const PackOptions& options, const Progress& progress)
    : options_(options), meter_(progress, 3 * source.numel()) {
  const Granularity granularity = granularity_of(source, options);
  manifest_.tensors = source.tensors;
  manifest_.numel = source.numel();
  manifest_.granularity = name_of(granularity);
  manifest_.scale_rule = options.scale.str();
  manifest_.parent = options.parent_id;
  manifest_.adapter_config = source.adapter_config;
  manifest_.source_metadata = source.tuned.metadata();

  std::map<std::string, std::size_t> index;
  std::vector<std::vector<DeltaPiece>> pieces;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < manifest_.tensors.size(); ++i) {
    PackedTensor& tensor = manifest_.tensors[i];
    if (tensor.storage != Storage::kTernary) continue;
    const std::string name = part_name(granularity, tensor.info.name);
    const auto [at, fresh] = index.emplace(name, pieces.size());
    if (fresh) {
      names.push_back(name);
      pieces.emplace_back();
    }
    tensor.part = at->second;
    pieces[tensor.part].push_back(source.piece(i));
  }
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    MagnitudeCurve curve(pieces[i], meter_.callback());
    parts_.push_back({{names[i]}, std::move(pieces[i]), std::move(curve)});
    parts_.back().part.numel = parts_.back().curve.numel();
    parts_.back().part.standard_deviation = parts_.back().curve.standard_deviation();
  }
}

double Packer::error_at(double density) const {
  double error = 0, norm = 0;
  for (const SharedPart& shared : parts_) {
    const auto keep = keep_count(density, shared.curve.numel());
    error += shared.curve.squared_error(keep, options_.scale);
    norm += shared.curve.squared_norm();
  }
  return norm > 0 ? std::sqrt(error / norm) : 0;
}

double Packer::ideal_bytes_at(double density) const {
  double bits = 0;
  for (const SharedPart& shared : parts_) {
    const auto n = static_cast<double>(shared.curve.numel());
    const auto kept = static_cast<double>(
        std::min(keep_count(density, shared.curve.numel()), shared.curve.nonzero()));
    if (kept <= 0) continue;
    const double p = kept / n;
    bits += kept;
    if (p < 1) bits -= n * (p * std::log2(p) + (1 - p) * std::log2(1 - p));
  }
  return bits / 8;
}

TernaryDelta Packer::select(double density) {
  ++selections_;
  TernaryDelta result;
  result.manifest = manifest_;
  result.manifest.density = density;
  result.planes = TernaryPlanes(manifest_.numel);
  double error = 0, norm = 0;
  std::int64_t empty = 0;
  std::string first_empty;
  for (const SharedPart& shared : parts_) {
    const DeltaStatistics found =
        select_largest(shared.pieces, shared.curve, keep_count(density, shared.curve.numel()),
                       result.planes, meter_.callback());
    PackedPart part = shared.part;
    part.scale =
        static_cast<float>(options_.scale.scale(found.mean_kept, found.standard_deviation));
    check(std::isfinite(part.scale), "the scale of part '", part.name, "' overflows float32");
    part.kept = found.kept;
    const double squared = std::max(0.0, found.relative_squared_error(part.scale));
    part.relative_error = std::sqrt(squared);
    error += squared * found.squared_norm;
    norm += found.squared_norm;
    const std::string warning =
        options_.scale.repeat_warning(found.mean_kept, found.standard_deviation);
    if (!warning.empty()) result.warnings.push_back(concat("part '", part.name, "': ", warning));
    for (std::size_t i = 0; i < shared.pieces.size(); ++i) {
      const std::string role = role_of(shared.pieces[i].name);
      result.roles[role].nonzero += found.nonzero_of_piece[i];
      result.roles[role].kept += found.kept_of_piece[i];
      if (found.nonzero_of_piece[i] == 0 || found.kept_of_piece[i] > 0 || role == "other") continue;
      if (empty++ == 0) first_empty = shared.pieces[i].name;
    }
    result.manifest.parts.push_back(std::move(part));
  }
  if (empty > 0)
    result.warnings.push_back(concat(empty,
                                     " factors keep no entry, so that their modules are left ",
                                     "as they were; the first is '", first_empty, "'"));
  result.relative_error = norm > 0 ? std::sqrt(error / norm) : 0;
  return result;
}

// The product of an adapter's factors vanishes with any one of them.
void check_factors_remain(const TernaryDelta& delta) {
  const std::string& granularity = delta.manifest.granularity;
  for (const auto& [role, entries] : delta.roles)
    check(role == "other" || entries.nonzero == 0 || entries.kept > 0, "of the ", entries.nonzero,
          " entries of the factors ", role, " none is kept at density ", delta.manifest.density,
          " and granularity ", granularity, ": the packed adapter would do nothing; use ",
          granularity == name_of(Granularity::kGlobal) ? "granularity group or " : "",
          "a larger density");
}

}  // namespace

std::string part_name(Granularity granularity, const std::string& tensor) {
  switch (granularity) {
    case Granularity::kTensor:
      return tensor;
    case Granularity::kGroup:
      return role_of(tensor);
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
  keep_count(options.density, 0);  // before the long work rather than after it
  TernaryDelta delta = Packer(source, options, progress).select(options.density);
  check_factors_remain(delta);
  return delta;
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
  keep_count(options.density, 0);
  AtomicFile::check_target(out, options.overwrite);

  const std::string base_fingerprint = source.base ? fingerprint(*source.base) : "";
  Packer packer(source, options, progress);
  const auto bytes_of = [&](TernaryDelta& delta) {
    delta.manifest.base_fingerprint = base_fingerprint;
    return packed_bytes(delta.manifest, delta.planes.view());
  };
  const auto select = [&](double density) { return packer.select(density); };
  const auto error_at = [&](double density) { return packer.error_at(density); };
  TernaryDelta delta;
  if (options.target_error)
    delta = least_density_with_error(*options.target_error, error_at, select);
  else if (options.target_bytes)
    delta = best_density_within_bytes(
        *options.target_bytes, error_at,
        [&](double density) { return packer.ideal_bytes_at(density); }, select, bytes_of);
  else
    delta = select(options.density);
  check_factors_remain(delta);
  delta.manifest.base_fingerprint = base_fingerprint;
  PackResult result;
  result.density = delta.manifest.density;
  result.relative_error = delta.relative_error;
  result.numel = delta.manifest.numel;
  result.kept = delta.manifest.kept();
  result.warnings = std::move(delta.warnings);
  result.selections = packer.selections();
  result.warnings.insert(result.warnings.begin(), source.warnings.begin(), source.warnings.end());
  const auto values_of = [&](std::size_t tensor) {
    return source.tuned.bytes(source.tensors[tensor].info.name);
  };
  result.id = write_packed(out, delta.manifest, delta.planes.view(), values_of, options.overwrite);
  result.file_bytes = std::filesystem::file_size(out);
  return result;
}

}  // namespace thinwire::peft
