#include "thinwire/compressors/peft/merge.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/adapter_types.h"

namespace thinwire::peft {
namespace {

constexpr std::array kMethods = {MergeMethod::kTies, MergeMethod::kMajority, MergeMethod::kAverage,
                                 MergeMethod::kTaskArithmetic};

float ties_entry(std::span<const float> values, std::span<const float> weights) {
  int signs = 0;
  for (const float value : values) signs += (value > 0) - (value < 0);
  float sum = 0;
  int agreeing = 0;
  for (std::size_t e = 0; e < values.size(); ++e) {
    if (signs >= 0 ? values[e] > 0 : values[e] < 0) {
      sum += values[e] * weights[e];
      ++agreeing;
    }
  }
  return agreeing > 0 ? sum / static_cast<float>(agreeing) : 0.0f;
}

bool is_factor_b(const PackedTensor& tensor) {
  return tensor.storage != Storage::kValue && role_of(tensor.info.name) == "B";
}

void check_compatible(const std::vector<const PackedFile*>& files) {
  check(!files.empty(), "at least one packed file is needed");
  const Manifest& first = files[0]->manifest();
  for (const PackedFile* file : files) {
    const Manifest& other = file->manifest();
    const auto refuse = [&](bool ok, const std::string& what) {
      check(ok, files[0]->path().string(), " and ", file->path().string(), " ", what);
    };
    refuse(other.base_fingerprint == first.base_fingerprint && other.parent == first.parent,
           "are deltas against different bases");
    refuse(other.tensors.size() == first.tensors.size(), "have different tensors");
    for (std::size_t i = 0; i < first.tensors.size(); ++i) {
      const PackedTensor& a = first.tensors[i];
      const PackedTensor& b = other.tensors[i];
      refuse(a.info.name == b.info.name && a.info.shape == b.info.shape,
             concat("differ in the name or shape of tensor '", a.info.name, "'"));
      refuse((a.storage == Storage::kValue) == (b.storage == Storage::kValue) &&
                 a.base_constant == b.base_constant,
             concat("store tensor '", a.info.name, "' against different bases"));
      if (a.storage != Storage::kValue) continue;
      const auto x = files[0]->dense_bytes(i);
      const auto y = file->dense_bytes(i);
      refuse(
          std::equal(x.begin(), x.end(), y.begin(), y.end()),
          concat("differ in tensor '", a.info.name, "', which is kept by value and has no merge"));
    }
  }
}

// What makes each file's factors B mean in the first file's configuration what they mean in their
// own: the ratio of the adapters' scales. All 1 where these are alike.
std::vector<double> factors_of(const std::vector<const PackedFile*>& files) {
  std::vector<double> factors(files.size(), 1);
  const auto& first = files[0]->manifest().adapter_config;
  for (std::size_t e = 1; e < files.size(); ++e) {
    const auto& other = files[e]->manifest().adapter_config;
    const std::string which = concat(files[0]->path().string(), " and ", files[e]->path().string());
    check(first.has_value() == other.has_value(), which,
          ": one is an adapter with a configuration, ", "the other has none");
    if (!first || *first == *other) continue;
    factors[e] = scale_between(AdapterConfig::parse(*other, files[e]->path().string()),
                               AdapterConfig::parse(*first, files[0]->path().string()), which);
    const auto& tensors = files[0]->manifest().tensors;
    check(factors[e] == 1 || std::any_of(tensors.begin(), tensors.end(), is_factor_b), which,
          " differ in their scale and have no factor B that could take the difference");
  }
  return factors;
}

// The merged float32 delta of one tensor.
void merge_tensor(MergeMethod method, std::span<DeltaReader> readers, std::size_t tensor,
                  std::span<const double> factors, std::span<const float> weights,
                  std::span<float> out) {
  constexpr std::size_t kChunk = 4096;
  const std::size_t experts = readers.size();
  std::vector<float> rows(experts * kChunk);
  std::vector<float> values(experts);
  for (std::size_t begin = 0; begin < out.size(); begin += kChunk) {
    const std::size_t n = std::min(kChunk, out.size() - begin);
    for (std::size_t e = 0; e < experts; ++e) {
      const std::span<float> row = std::span(rows).subspan(e * kChunk, n);
      readers[e].read(tensor, static_cast<std::int64_t>(begin), row);
      if (factors[e] != 1)
        for (float& value : row) value = static_cast<float>(factors[e] * value);
    }
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t e = 0; e < experts; ++e) values[e] = rows[e * kChunk + i];
      out[begin + i] = merge_entry(method, values, weights);
    }
  }
}

void merge_majority(const std::vector<const PackedFile*>& files, std::span<const double> factors,
                    std::span<const float> weights, const std::filesystem::path& out,
                    bool overwrite, const Progress& progress) {
  Manifest manifest = files[0]->manifest();
  // A part has one scale, which must be that of factors B alone to take the difference.
  std::vector<bool> with_b(manifest.parts.size(), false), with_others(manifest.parts.size(), false);
  for (const PackedTensor& tensor : manifest.tensors)
    if (tensor.storage == Storage::kTernary)
      (is_factor_b(tensor) ? with_b : with_others)[tensor.part] = true;
  const bool rescaled =
      std::any_of(factors.begin(), factors.end(), [](double f) { return f != 1; });
  for (std::size_t p = 0; p < manifest.parts.size(); ++p)
    check(!rescaled || !with_b[p] || !with_others[p],
          "the files have adapters of different scales, "
          "and part '",
          manifest.parts[p].name,
          "' holds factors B with others; pack them with "
          "granularity group or tensor for a majority");
  std::vector<TernaryPlanes> planes;
  std::vector<PlanesView> views;
  for (const PackedFile* file : files) {
    const Manifest& other = file->manifest();
    for (std::size_t i = 0; i < manifest.tensors.size(); ++i)
      check(manifest.tensors[i].storage == other.tensors[i].storage &&
                manifest.tensors[i].part == other.tensors[i].part &&
                manifest.tensors[i].storage != Storage::kDelta,
            "majority needs ternary files of one granularity; ", file->path().string(),
            " differs from ", files[0]->path().string(), " in tensor '",
            manifest.tensors[i].info.name, "'");
    planes.push_back(file->planes());
  }
  for (const TernaryPlanes& expert : planes) views.push_back(expert.view());
  TernaryPlanes merged(manifest.numel);
  majority(views, merged);

  for (std::size_t p = 0; p < manifest.parts.size(); ++p) {
    PackedPart& part = manifest.parts[p];
    float sum = 0;
    for (std::size_t e = 0; e < files.size(); ++e)
      sum += weights[e] * static_cast<float>((with_b[p] ? factors[e] : 1.0) *
                                             files[e]->manifest().parts[p].scale);
    part.scale = sum / static_cast<float>(files.size());
    part.kept = 0;
    part.standard_deviation = 0;
    part.relative_error = 0;
  }
  for (const PackedTensor& tensor : manifest.tensors)
    if (tensor.storage == Storage::kTernary)
      manifest.parts[tensor.part].kept +=
          count_nonzero(extract(merged.view(), tensor.offset, tensor.info.numel()).view());
  manifest.scale_rule = "majority";
  manifest.density = manifest.numel > 0 ? static_cast<double>(manifest.kept()) /
                                              static_cast<double>(manifest.numel)
                                        : 0;
  write_packed(
      out, manifest, merged.view(),
      [&](std::size_t tensor) { return files[0]->dense_bytes(tensor); }, overwrite, progress);
}

}  // namespace

const char* name_of(MergeMethod method) {
  switch (method) {
    case MergeMethod::kTies:
      return "ties";
    case MergeMethod::kMajority:
      return "majority";
    case MergeMethod::kAverage:
      return "average";
    case MergeMethod::kTaskArithmetic:
      return "task-arithmetic";
  }
  return "";
}

MergeMethod parse_merge_method(const std::string& text) {
  for (const MergeMethod method : kMethods)
    if (text == name_of(method)) return method;
  throw InvalidArgument(
      concat("method must be ties, majority, average or task-arithmetic, got '", text, "'"));
}

float merge_entry(MergeMethod method, std::span<const float> values,
                  std::span<const float> weights) {
  THINWIRE_ASSERT(method != MergeMethod::kMajority);
  if (method == MergeMethod::kTies) return ties_entry(values, weights);
  float sum = 0;
  for (std::size_t e = 0; e < values.size(); ++e) sum += values[e] * weights[e];
  return method == MergeMethod::kAverage ? sum / static_cast<float>(values.size()) : sum;
}

void majority(std::span<const PlanesView> experts, TernaryPlanes& out) {
  // The sum of signs of 64 entries at a time, as a two's complement number whose digits are words.
  constexpr std::size_t kDigits = 16;
  check(experts.size() < (1u << (kDigits - 1)), "too many experts: ", experts.size());
  for (const PlanesView& expert : experts)
    check(expert.numel == out.numel(), "an expert has ", expert.numel, " entries, not ",
          out.numel());
  for (std::size_t w = 0; w < out.mask().size(); ++w) {
    std::array<std::uint64_t, kDigits> digits{};
    for (const PlanesView& expert : experts) {
      std::uint64_t carry = expert.mask[w] & ~expert.sign[w];
      for (std::size_t d = 0; d < kDigits && carry != 0; ++d) {
        const std::uint64_t next = digits[d] & carry;
        digits[d] ^= carry;
        carry = next;
      }
      std::uint64_t borrow = expert.sign[w];
      for (std::size_t d = 0; d < kDigits && borrow != 0; ++d) {
        const std::uint64_t next = ~digits[d] & borrow;
        digits[d] ^= borrow;
        borrow = next;
      }
    }
    std::uint64_t nonzero = 0;
    for (const std::uint64_t digit : digits) nonzero |= digit;
    out.mask()[w] = nonzero;
    out.sign()[w] = digits[kDigits - 1];
  }
}

void merge_packed(MergeMethod method, const std::vector<const PackedFile*>& files,
                  std::vector<float> weights, const std::filesystem::path& out, bool overwrite,
                  const Progress& progress) {
  check_compatible(files);
  if (weights.empty()) weights.assign(files.size(), 1.0f);
  check(weights.size() == files.size(), files.size(), " files need as many weights, got ",
        weights.size());
  for (const float weight : weights)
    check(std::isfinite(weight) && (method != MergeMethod::kMajority || weight > 0),
          "weights must be finite (and positive for majority), got ", weight);
  const std::vector<double> factors = factors_of(files);
  const std::vector<double> unchanged(files.size(), 1);
  if (method == MergeMethod::kMajority)
    return merge_majority(files, factors, weights, out, overwrite, progress);

  Manifest manifest = files[0]->manifest();
  manifest.parts.clear();
  manifest.numel = 0;
  manifest.density = 1;
  manifest.scale_rule = name_of(method);
  std::int64_t total = 0;
  for (PackedTensor& tensor : manifest.tensors) {
    if (tensor.storage == Storage::kValue) continue;
    tensor = {tensor.info, Storage::kDelta, tensor.base_constant};
    // Against constants the sum is kept in float32, so that nothing is lost; against a base file
    // the tensor has to stay what the base is.
    if (manifest.base_fingerprint.empty()) tensor.info.dtype = "F32";
    total += tensor.info.numel();
  }
  std::vector<DeltaReader> readers;
  for (const PackedFile* file : files) readers.emplace_back(*file);
  std::vector<float> merged;
  std::int64_t done = 0;
  const auto bytes_of = [&](std::size_t index) -> std::span<const std::byte> {
    const PackedTensor& tensor = manifest.tensors[index];
    if (tensor.storage == Storage::kValue) return files[0]->dense_bytes(index);
    merged.resize(static_cast<std::size_t>(tensor.info.numel()));
    merge_tensor(method, readers, index, is_factor_b(tensor) ? factors : unchanged, weights,
                 merged);
    done += tensor.info.numel();
    if (progress) progress(done, 2 * total);
    return std::as_bytes(std::span(merged));
  };
  write_packed(out, manifest, TernaryPlanes().view(), bytes_of, overwrite);
}

std::vector<double> cosine_matrix(const std::vector<const PackedFile*>& files) {
  check_compatible(files);
  const std::size_t n = files.size();
  std::vector<TernaryPlanes> planes;
  for (const PackedFile* file : files) {
    check(file->manifest().numel == files[0]->manifest().numel && file->manifest().numel > 0,
          file->path().string(), " has no ternary vector of the same length");
    planes.push_back(file->planes());
  }
  const auto inner = [&](std::size_t a, std::size_t b) {
    const Manifest& x = files[a]->manifest();
    const Manifest& y = files[b]->manifest();
    if (x.parts.size() == 1 && y.parts.size() == 1)
      return static_cast<double>(x.parts[0].scale) * y.parts[0].scale *
             static_cast<double>(dot(planes[a].view(), planes[b].view()));
    double sum = 0;
    for (std::size_t i = 0; i < x.tensors.size(); ++i) {
      const PackedTensor& t = x.tensors[i];
      if (t.storage != Storage::kTernary) continue;
      const std::int64_t numel = t.info.numel();
      const auto left = extract(planes[a].view(), t.offset, numel);
      const auto right = extract(planes[b].view(), y.tensors[i].offset, numel);
      sum += static_cast<double>(x.parts[t.part].scale) * y.parts[y.tensors[i].part].scale *
             static_cast<double>(dot(left.view(), right.view()));
    }
    return sum;
  };
  std::vector<double> norms(n), matrix(n * n);
  for (std::size_t a = 0; a < n; ++a) norms[a] = std::sqrt(inner(a, a));
  for (std::size_t a = 0; a < n; ++a) {
    matrix[a * n + a] = norms[a] > 0 ? 1 : 0;
    for (std::size_t b = 0; b < a; ++b) {
      const double scale = norms[a] * norms[b];
      matrix[a * n + b] = matrix[b * n + a] = scale > 0 ? inner(a, b) / scale : 0;
    }
  }
  return matrix;
}

}  // namespace thinwire::peft
