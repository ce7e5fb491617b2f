// Curves and plans as JSON.
//
// Curves: {"layers": [{"name": text, "numel": whole number, "reference": index, "norm": number
// (optional), "candidates": [{"spec": text, "bytes": number, "error": number, "seconds": number
// (optional)}]}]}. Nothing else is accepted.
//
// Plan: {"constraint", "objective", "budget", "limit", "lower_bound", "optimal", "fell_back",
// "total_bytes", "total_error", "total_seconds", "reference_bytes", "reference_error",
// "reference_seconds", "hash", "warnings", "layers": [{"name", "numel", "choice", "spec", "bytes",
// "error", "seconds", "reference_spec", "reference_bytes", "reference_error",
// "reference_seconds"}]}.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "thinwire/compressors/allocation/allocator.h"

namespace thinwire::lgreco {

struct CurveFile {
  std::vector<Layer> layers;
  // The first place without seconds, `layers[0].candidates[2].seconds`; empty: all have them.
  std::string first_without_seconds;
  bool has_seconds() const { return first_without_seconds.empty(); }
  // By layer and candidate.
  std::vector<std::vector<bool>> timed;
};

// Throws FileError naming `source` and the place, `layers[3].candidates[1].bytes`, for text that is
// no JSON, a missing, unknown or repeated field, a wrong type, a negative or non-finite number, no
// candidate, a reference out of range, a layer name that occurs twice, or a spec that does not
// follow the grammar.
CurveFile parse_curves(std::string_view text, const std::string& source);
CurveFile read_curves(const std::string& path);

struct PlannedLayer {
  std::string name;
  std::int64_t numel = 0;
  std::size_t choice = 0;
  Candidate chosen;
  Candidate reference;
};

struct SolvedPlan {
  AllocationOptions options;
  Totals chosen, reference;
  double limit = 0, lower_bound = 0;
  bool optimal = false, fell_back = false;
  std::vector<std::string> warnings;
  std::vector<PlannedLayer> layers;
};

SolvedPlan make_plan(const std::vector<Layer>& layers, const AllocationOptions& options,
                     const Allocation& allocation);

// 64-bit hash of every layer's name and chosen spec, in order: equal on two ranks exactly if they
// will send the same (XXH64). Numbers that may differ in rounding are not part of it.
std::uint64_t plan_hash(const SolvedPlan& plan);

std::string plan_text(const SolvedPlan& plan);
// Throws FileError as parse_curves(), and where the hash does not fit the layers.
SolvedPlan parse_plan(std::string_view text, const std::string& source);
SolvedPlan read_plan(const std::string& path);

// The whole file. Throws FileError.
std::string read_text_file(const std::string& path);
// Writes beside the path and renames, so that a reader never sees a part. Throws FileError.
void write_text_file(const std::string& path, const std::string& text);

}  // namespace thinwire::lgreco
