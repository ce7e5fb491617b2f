// From a source of deltas to a packed file.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "thinwire/compressors/peft/adapter_dir.h"

namespace thinwire::peft {

// What shares one threshold and one scale: everything; the tensors of one role (LoRA's A factors,
// its B factors, all others), because one threshold starves B, which starts at zero; each tensor.
enum class Granularity { kGlobal, kGroup, kTensor };
const char* name_of(Granularity granularity);
Granularity parse_granularity(const std::string& text);  // InvalidArgument for other words
// Name of the part that a tensor belongs to: "all"; its role_of(); its own name.
std::string part_name(Granularity granularity, const std::string& tensor);

struct PackOptions {
  double density = 0.05;
  ScaleRule scale = {};
  // Nothing: kGroup for sources with factors of more than one role, kGlobal for others.
  std::optional<Granularity> granularity = {};
  // At most one of the two; the density is then searched instead of given. target_bytes: of the
  // densities whose file has at most so many bytes, the one of least error (the largest up to two
  // thirds, to a fraction of a per mille of the bytes, or 1); target_error: the least with
  // |delta - ternary| at most target_error |delta|.
  std::optional<std::uint64_t> target_bytes = {};
  std::optional<double> target_error = {};
  // The file whose result the base is; empty for none.
  std::string parent_id = {};
  bool overwrite = false;
};

struct PackResult {
  double density = 0;
  double relative_error = 0;  // of the whole delta
  std::int64_t numel = 0;
  std::int64_t kept = 0;
  std::uint64_t file_bytes = 0;
  std::string id;
  std::vector<std::string> warnings;
  // How often entries were selected: once, but for target_bytes, where files have to be tried.
  int selections = 0;
};

// A ternary delta with its manifest, before it is written.
struct TernaryDelta {
  Manifest manifest;
  TernaryPlanes planes;
  double relative_error = 0;
  std::vector<std::string> warnings;
  // Of the tensors of each role_of(): entries that are not zero, and those of them that are kept.
  struct Role {
    std::int64_t nonzero = 0, kept = 0;
  };
  std::map<std::string, Role> roles;
};

// Selects and scales; int(density * numel) entries of every part are kept. Throws InvalidArgument
// where all factors of a role would be left without an entry, though they are not zero: their
// product, all that the adapter does, would be nothing.
TernaryDelta make_ternary(const DeltaSource& source, const PackOptions& options,
                          const Progress& progress = {});

// Throws InvalidArgument for options that contradict each other or a target that no density meets,
// FileError where the file cannot be written.
PackResult pack(const DeltaSource& source, const std::filesystem::path& out,
                const PackOptions& options, const Progress& progress = {});

}  // namespace thinwire::peft
