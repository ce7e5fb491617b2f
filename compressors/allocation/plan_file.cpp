#include "thinwire/compressors/allocation/plan_file.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "thinwire/common/atomic_file.h"
#include "thinwire/common/error.h"
#include "thinwire/common/json.h"
#include "thinwire/common/spec.h"

namespace thinwire::lgreco {
namespace {

using Json = nlohmann::ordered_json;

std::string hash_text(std::uint64_t hash) {
  char text[19];
  std::snprintf(text, sizeof text, "0x%016llx", static_cast<unsigned long long>(hash));
  return text;
}

// Whole numbers are written without a fraction.
Json number(double value) {
  if (value == static_cast<double>(static_cast<std::uint64_t>(std::min(value, 0x1p53)))) {
    return static_cast<std::uint64_t>(value);
  }
  return value;
}

std::string read_spec(const JsonPlace& place) {
  const std::string text = place.text();
  try {
    return Spec::parse(text).str();
  } catch (const InvalidArgument& error) {
    place.fail(error.what());
  }
}

std::int64_t read_numel(const JsonPlace& layer) {
  const auto numel = static_cast<std::int64_t>(layer.at("numel").whole());
  if (numel < 0) layer.at("numel").fail("does not fit in 63 bits");
  return numel;
}

Layer read_layer(const JsonPlace& place, CurveFile& file) {
  place.expect_fields({"name", "numel", "reference", "norm", "candidates"});
  Layer layer;
  layer.name = place.at("name").text();
  layer.numel = read_numel(place);
  if (place.has("norm")) layer.norm = place.at("norm").number();
  const JsonPlace candidates = place.at("candidates");
  if (candidates.size() == 0) candidates.fail("a layer needs at least one candidate");
  std::vector<bool>& timed_candidates = file.timed.emplace_back();
  for (std::size_t c = 0; c < candidates.size(); ++c) {
    const JsonPlace candidate = candidates.at(c);
    candidate.expect_fields({"spec", "bytes", "error", "seconds"});
    const bool timed = candidate.has("seconds");
    timed_candidates.push_back(timed);
    if (!timed && file.has_seconds()) {
      file.first_without_seconds =
          concat("layers[", file.timed.size() - 1, "].candidates[", c, "].seconds");
    }
    layer.candidates.push_back({read_spec(candidate.at("spec")), candidate.at("bytes").number(),
                                candidate.at("error").number(),
                                timed ? candidate.at("seconds").number() : 0});
  }
  layer.reference = place.at("reference").whole();
  if (layer.reference >= layer.candidates.size()) {
    place.at("reference")
        .fail(concat("index ", layer.reference, " is out of range, there are ",
                     layer.candidates.size(), " candidates"));
  }
  return layer;
}

void expect_new_name(const JsonPlace& layer, const std::string& name,
                     std::unordered_map<std::string, std::size_t>& seen, std::size_t index) {
  const auto [at, fresh] = seen.emplace(name, index);
  if (!fresh) {
    layer.at("name").fail(concat("'", name, "' is also the name of layers[", at->second, "]"));
  }
}

template <typename Enum>
Enum read_choice(const JsonPlace& place, const char* first, const char* second) {
  const std::string text = place.text();
  if (text != first && text != second) {
    place.fail(concat("expected '", first, "' or '", second, "', found '", text, "'"));
  }
  return static_cast<Enum>(text == second);
}

}  // namespace

CurveFile parse_curves(std::string_view text, const std::string& source) {
  const nlohmann::json document = parse_json(text, source);
  const JsonPlace root(document, source);
  root.expect_fields({"layers"});
  const JsonPlace layers = root.at("layers");
  CurveFile file;
  std::unordered_map<std::string, std::size_t> names;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    file.layers.push_back(read_layer(layers.at(l), file));
    expect_new_name(layers.at(l), file.layers.back().name, names, l);
  }
  return file;
}

CurveFile read_curves(const std::string& path) {
  return parse_curves(read_text_file(path), path);
}

SolvedPlan make_plan(const std::vector<Layer>& layers, const AllocationOptions& options,
                     const Allocation& allocation) {
  check(allocation.choice.size() == layers.size(), "an allocation for ", allocation.choice.size(),
        " layers does not fit ", layers.size(), " layers");
  SolvedPlan plan{options,
                  allocation.chosen,
                  allocation.reference,
                  allocation.limit,
                  allocation.lower_bound,
                  allocation.optimal,
                  allocation.fell_back,
                  allocation.warnings,
                  {}};
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const Layer& layer = layers[l];
    plan.layers.push_back({layer.name, layer.numel, allocation.choice[l],
                           layer.candidates[allocation.choice[l]],
                           layer.candidates[layer.reference]});
  }
  return plan;
}

std::uint64_t plan_hash(const SolvedPlan& plan) {
  std::string text;
  for (const PlannedLayer& layer : plan.layers) {
    // Lengths keep ("ab", "c") and ("a", "bc") apart.
    text += concat(layer.name.size(), ":", layer.name, layer.chosen.spec.size(), ":",
                   layer.chosen.spec);
  }
  return XXH64(text.data(), text.size(), 0);
}

std::string plan_text(const SolvedPlan& plan) {
  Json json;
  json["constraint"] = plan.options.constraint == Constraint::kError ? "error" : "bytes";
  json["objective"] = plan.options.objective == Objective::kBytes ? "bytes" : "time";
  json["budget"] = plan.options.budget;
  json["limit"] = number(plan.limit);
  json["lower_bound"] = number(plan.lower_bound);
  json["optimal"] = plan.optimal;
  json["fell_back"] = plan.fell_back;
  json["total_bytes"] = number(plan.chosen.bytes);
  json["total_error"] = plan.chosen.error;
  json["total_seconds"] = plan.chosen.seconds;
  json["reference_bytes"] = number(plan.reference.bytes);
  json["reference_error"] = plan.reference.error;
  json["reference_seconds"] = plan.reference.seconds;
  json["hash"] = hash_text(plan_hash(plan));
  json["warnings"] = plan.warnings;
  json["layers"] = Json::array();
  for (const PlannedLayer& layer : plan.layers) {
    json["layers"].push_back({{"name", layer.name},
                              {"numel", layer.numel},
                              {"choice", layer.choice},
                              {"spec", layer.chosen.spec},
                              {"bytes", number(layer.chosen.bytes)},
                              {"error", layer.chosen.error},
                              {"seconds", layer.chosen.seconds},
                              {"reference_spec", layer.reference.spec},
                              {"reference_bytes", number(layer.reference.bytes)},
                              {"reference_error", layer.reference.error},
                              {"reference_seconds", layer.reference.seconds}});
  }
  // In ASCII: the text may go to a terminal, and names are whatever the file of curves has.
  return json.dump(1, ' ', /*ensure_ascii=*/true) + "\n";
}

SolvedPlan parse_plan(std::string_view text, const std::string& source) {
  const nlohmann::json document = parse_json(text, source);
  const JsonPlace root(document, source);
  root.expect_fields({"constraint", "objective", "budget", "limit", "lower_bound", "optimal",
                      "fell_back", "total_bytes", "total_error", "total_seconds", "reference_bytes",
                      "reference_error", "reference_seconds", "hash", "warnings", "layers"});
  SolvedPlan plan;
  plan.options.constraint = read_choice<Constraint>(root.at("constraint"), "error", "bytes");
  plan.options.objective = read_choice<Objective>(root.at("objective"), "bytes", "time");
  plan.options.budget = root.at("budget").number();
  plan.limit = root.at("limit").number();
  plan.lower_bound = root.at("lower_bound").number();
  plan.optimal = root.at("optimal").flag();
  plan.fell_back = root.at("fell_back").flag();
  plan.chosen = {root.at("total_bytes").number(), root.at("total_error").number(),
                 root.at("total_seconds").number()};
  plan.reference = {root.at("reference_bytes").number(), root.at("reference_error").number(),
                    root.at("reference_seconds").number()};
  const JsonPlace warnings = root.at("warnings");
  for (std::size_t w = 0; w < warnings.size(); ++w) plan.warnings.push_back(warnings.at(w).text());
  const JsonPlace layers = root.at("layers");
  std::unordered_map<std::string, std::size_t> names;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const JsonPlace layer = layers.at(l);
    layer.expect_fields({"name", "numel", "choice", "spec", "bytes", "error", "seconds",
                         "reference_spec", "reference_bytes", "reference_error",
                         "reference_seconds"});
    plan.layers.push_back(
        {layer.at("name").text(),
         read_numel(layer),
         layer.at("choice").whole(),
         {read_spec(layer.at("spec")), layer.at("bytes").number(), layer.at("error").number(),
          layer.at("seconds").number()},
         {read_spec(layer.at("reference_spec")), layer.at("reference_bytes").number(),
          layer.at("reference_error").number(), layer.at("reference_seconds").number()}});
    expect_new_name(layer, plan.layers.back().name, names, l);
  }
  const std::string hash = hash_text(plan_hash(plan));
  if (root.at("hash").text() != hash) {
    root.at("hash").fail(concat("does not fit the layers, which have ", hash));
  }
  return plan;
}

SolvedPlan read_plan(const std::string& path) {
  return parse_plan(read_text_file(path), path);
}

std::string read_text_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  // A stream catches what its buffer throws, for a directory, say; an iterator would not.
  std::string text, piece(std::size_t{1} << 16, '\0');
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())) || file.gcount() > 0) {
    text.append(piece, 0, static_cast<std::size_t>(file.gcount()));
  }
  if (!file.eof()) throw FileError(concat("cannot read ", path));
  return text;
}

void write_text_file(const std::string& path, const std::string& text) {
  AtomicFile file(path, /*overwrite=*/true);
  file.write(text);
  file.commit();
}

}  // namespace thinwire::lgreco
