#include "thinwire/compressors/peft/pack.h"

#include <cmath>
#include <map>

#include "thinwire/common/error.h"

namespace thinwire::peft {
namespace {

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

std::uint64_t packed_bytes(const DeltaSource& source, const TernaryDelta& delta) {
  // Everything but the blocks has the same size for any density, up to a few digits.
  std::vector<std::byte> buffer(max_block_bytes(kBlockEntries));
  std::uint64_t bytes = 14 * static_cast<std::uint64_t>(block_count(delta.planes.numel()));
  const PlanesView planes = delta.planes.view();
  for (std::int64_t block = 0; block < block_count(planes.numel); ++block)
    bytes += encode_block(planes.slice(block * kBlockEntries, block_entries(planes.numel, block)),
                          buffer);
  for (const PackedTensor& tensor : source.tensors)
    if (tensor.storage != Storage::kTernary) bytes += tensor.info.bytes();
  bytes += 2 * manifest_json(delta.manifest).size() + 1024;
  if (source.adapter_config) bytes += 2 * source.adapter_config->size();
  return bytes;
}

// The end of (0, 1] nearest to `wanted` at which fits(density) still holds; fits is monotonic.
template <typename Fits>
double search_density(bool largest, Fits fits) {
  double good = -1, low = 0, high = 1;
  if (!largest && fits(1.0)) good = 1;
  if (largest && fits(1.0)) return 1;
  constexpr int kSteps = 20;  // to a millionth of the vector
  for (int i = 0; i < kSteps; ++i) {
    const double middle = (low + high) / 2;
    const bool ok = fits(middle);
    if (ok) good = middle;
    (ok == largest ? low : high) = middle;
  }
  return good;
}

}  // namespace

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

  PackOptions chosen = options;
  if (options.target_bytes || options.target_error) {
    chosen.density = search_density(options.target_bytes.has_value(), [&](double density) {
      chosen.density = density;
      const TernaryDelta trial = make_ternary(source, chosen);
      return options.target_bytes ? packed_bytes(source, trial) <= *options.target_bytes
                                  : trial.relative_error <= *options.target_error;
    });
    check(chosen.density > 0, "no density meets the target of ",
          options.target_bytes ? concat(*options.target_bytes, " bytes")
                               : concat("a relative error of ", *options.target_error));
  }
  TernaryDelta delta = make_ternary(source, chosen, progress);
  if (source.base) delta.manifest.base_fingerprint = fingerprint(*source.base);
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
