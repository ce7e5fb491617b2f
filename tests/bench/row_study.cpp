// What merging and coding rows would lose on tokens from elsewhere, layer by layer, without
// training: row_study ROWS.safetensors
//
// Every tensor of the file is a layer's tokens, [tokens, dim] float32. A line of JSON for each
// layer, setting and number of tokens goes to standard output:
//   {"layer":…,"kind":"merge","hashes":…,"hash_dim":…,"radius":…,"tokens":…,
//    "rows_fraction":…,"mean_radius":…,"worst_radius":…,"relative_error":…}
//   {"layer":…,"kind":"code","spec":…,"tokens":…,"bits":…,"relative_error":…}
// relative_error is sqrt(Σ |x − x'|² / Σ |x|²), before an expert sees the rows; bits are those of
// an element on the wire. hash_dim 0 is the tokens' dimension.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>

#include <array>
#include <cmath>
#include <cstring>
#include <exception>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "thinwire/common/error.h"
#include "thinwire/compressors/lsh/cluster.h"
#include "thinwire/compressors/peft/safetensors.h"
#include "thinwire/moe/rows/row_codec.h"
#include "thinwire/moe/rows/row_moments.h"

namespace {

using namespace thinwire;
using moe::RowCodec;
using moe::RowMoments;
using moe::SpectralOptions;

constexpr std::int64_t kExperts = 8;
constexpr std::array<std::int64_t, 3> kTokens = {1024, 4096, 16384};
constexpr std::array<int, 4> kHashes = {1, 2, 4, 6};
constexpr std::array<std::int64_t, 2> kHashDims = {16, 0};
constexpr std::array<double, 4> kRadii = {0.3, 0.4, 0.6, std::numeric_limits<double>::infinity()};
constexpr std::array kSpecs = {"quantize(bits=8)",
                               "quantize(bits=4)",
                               "ecsq(bits=5.85)",
                               "ecsq(bits=3.5)",
                               "ecsq(bits=2.5)",
                               "ecsq(bits=1.75)",
                               "spectral(bits=4)",
                               "spectral(bits=3)",
                               "spectral(bits=2.5)",
                               "spectral(bits=2)",
                               "spectral(bits=5.4, coding=entropy)",
                               "spectral(bits=3, coding=entropy)",
                               "spectral(bits=2, coding=entropy)",
                               "spectral(bits=1.2, coding=entropy)"};

// The tokens of every expert, as a linear gate with random weights would route them: similar tokens
// mostly go the same way.
struct Routing {
  std::vector<std::int32_t> token;
  std::vector<std::int64_t> group_begin;
};
Routing route(const at::Tensor& tokens) {
  auto generator = at::detail::createCPUGenerator(1);
  const at::Tensor gate = at::randn({tokens.size(1), kExperts}, generator, tokens.options());
  const at::Tensor chosen = at::matmul(tokens.sub(tokens.mean(0, true)), gate).argmax(1);
  const auto* expert = chosen.const_data_ptr<std::int64_t>();
  Routing routing{{}, {0}};
  for (std::int64_t e = 0; e < kExperts; ++e) {
    for (std::int64_t t = 0; t < tokens.size(0); ++t) {
      if (expert[t] == e) routing.token.push_back(static_cast<int>(t));
    }
    routing.group_begin.push_back(static_cast<std::int64_t>(routing.token.size()));
  }
  return routing;
}

void study_merging(const std::string& layer, const at::Tensor& tokens) {
  const std::int64_t dim = tokens.size(1);
  const std::span values(tokens.const_data_ptr<float>(), static_cast<std::size_t>(tokens.numel()));
  const Routing routing = route(tokens);
  const lsh::GroupedRows rows{routing.token, routing.group_begin};
  for (const std::int64_t hash_dim : kHashDims) {
    const lsh::CrossPolytopeHash hash(dim, {.hashes = kHashes.back(), .hash_dim = hash_dim});
    std::vector<lsh::HashCode> codes(static_cast<std::size_t>(tokens.size(0) * kHashes.back()));
    hash.hash(values, codes);
    const auto prefixes = lsh::prefix_labels(codes, kHashes.back(), rows);
    for (const int hashes : kHashes) {
      for (const double radius : kRadii) {
        std::vector<float> centroids;
        const auto merged =
            lsh::cluster_rows<float>(values, dim, rows, prefixes,
                                     {.choice = {.prefix = hashes}, .radius = radius}, centroids);
        std::cout << nlohmann::json{{"layer", layer},
                                    {"kind", "merge"},
                                    {"hashes", hashes},
                                    {"hash_dim", hash_dim},
                                    {"radius", std::isinf(radius) ? 0 : radius},
                                    {"tokens", tokens.size(0)},
                                    {"rows_fraction", static_cast<double>(merged.labels.count) /
                                                          static_cast<double>(rows.rows())},
                                    {"mean_radius", merged.mean_radius},
                                    {"worst_radius", merged.worst_radius},
                                    {"relative_error", merged.relative_error}}
                  << "\n";
      }
    }
  }
}

// A spectral codec learns its basis from the first half of the tokens; all codecs are measured on
// the second.
void study_coding(const std::string& layer, const at::Tensor& tokens) {
  const std::int64_t dim = tokens.size(1), half = tokens.size(0) / 2;
  const at::Tensor rows = tokens.narrow(0, half, tokens.size(0) - half);
  RowMoments moments(dim);
  for (std::int64_t at = 0; at < half; at += 128) {
    moments.add(tokens.narrow(0, at, std::min<std::int64_t>(128, half - at)));
  }
  for (const char* spec : kSpecs) {
    RowCodec codec{std::string(spec)};
    if (const SpectralOptions* spectral = codec.spectral()) {
      codec =
          codec.with_basis(moe::basis_of(moments.basis_message(*spectral, true), *spectral, dim));
    }
    // What one rank sends to another at a time.
    std::vector<moe::RowSegment> messages;
    for (std::int64_t at = 0; at < rows.size(0); at += 512)
      messages.push_back({std::min<std::int64_t>(512, rows.size(0) - at), {}});
    const at::Tensor bytes = codec.encode(rows, messages);
    const at::Tensor decoded = codec.decode(bytes, dim, at::kFloat, messages);
    const double error = decoded.sub(rows).norm().item<double>() / rows.norm().item<double>();
    std::cout << nlohmann::json{{"layer", layer},
                                {"kind", "code"},
                                {"spec", spec},
                                {"tokens", rows.size(0)},
                                {"bits", 8.0 * static_cast<double>(bytes.numel()) /
                                             static_cast<double>(rows.numel())},
                                {"relative_error", error}}
              << "\n";
  }
}

void study(const peft::SafetensorsFile& file) {
  for (const peft::TensorInfo& tensor : file.tensors()) {
    check(tensor.dtype == "F32" && tensor.shape.size() == 2, "tensor '", tensor.name, "' of ",
          file.path().string(), " must be [tokens, dim] of F32");
    const auto bytes = file.bytes(tensor.name);
    at::Tensor tokens = at::empty(
        {static_cast<std::int64_t>(tensor.shape[0]), static_cast<std::int64_t>(tensor.shape[1])},
        at::kFloat);
    std::memcpy(tokens.mutable_data_ptr(), bytes.data(), bytes.size());
    for (const std::int64_t count : kTokens) {
      if (count <= tokens.size(0)) study_merging(tensor.name, tokens.narrow(0, 0, count));
    }
    study_coding(tensor.name, tokens);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: row_study ROWS.safetensors\n";
    return 2;
  }
  try {
    study(peft::SafetensorsFile(std::filesystem::path(argv[1])));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "row_study: " << error.what() << "\n";
    return 1;
  }
}
