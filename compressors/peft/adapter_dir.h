// What is packed and what unpacking gives: directories of the PEFT library, plain safetensors
// files, or a tuned file and its base.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "thinwire/compressors/peft/container.h"
#include "thinwire/compressors/peft/select.h"

namespace thinwire::peft {

inline constexpr const char* kAdapterConfigName = "adapter_config.json";
inline constexpr const char* kAdapterModelName = "adapter_model.safetensors";

// A source of deltas: mapped files and, for every tensor, whether it is coded and against what.
struct DeltaSource {
  SafetensorsFile tuned;
  std::optional<SafetensorsFile> base;
  std::optional<std::string> adapter_config;
  // In order of the names; storage kTernary (to be coded) or kValue (kept as it is).
  std::vector<PackedTensor> tensors;
  // What whoever packs it should know, a sentence each.
  std::vector<std::string> warnings;

  // Entries [0, numel) of a kTernary tensor as a piece at its offset.
  DeltaPiece piece(std::size_t tensor) const;
  std::int64_t numel() const;  // of all kTernary tensors
};

// A PEFT directory. Coded are the tensors whose base is known (adapter_types.h): the factors of
// LoRA and AdaLoRA, LoHa and LoKr (base 0), the vectors of IA3 (base 1) and some more. Whatever
// else an adapter holds (modules_to_save, biases, DoRA's magnitudes, scalars) and all tensors of
// other types are kept as they are; a warning says where that is all. Throws FileError for a
// directory without adapter_config.json or adapter_model.safetensors, for one that only has
// adapter_model.bin (pickles run code), and for LoRA whose initialisation changes the base
// (init_lora_weights = pissa, olora and others).
DeltaSource open_adapter_dir(const std::filesystem::path& directory);

// A plain safetensors file against 0 (`base_constant` 0) or 1. Scalars and tensors of less than 16
// entries are kept as they are.
DeltaSource open_tensors(const std::filesystem::path& file, float base_constant);

// tuned - base. Throws FileError, naming the tensor, unless both files have the same tensors with
// the same dtypes and shapes. Tensors that are not of a float type are kept as they are.
DeltaSource open_pair(const std::filesystem::path& tuned, const std::filesystem::path& base);

// Rebuilds what was packed: writes DIRECTORY/adapter_model.safetensors, and adapter_config.json
// where the file has one. Every value is base + delta in float32, rounded once to the tensor's
// dtype. Throws InvalidArgument for a delta against a base file (apply_packed() is for these),
// FileError where the files exist and `overwrite` is false.
void unpack_to_dir(const PackedFile& file, const std::filesystem::path& directory, bool overwrite,
                   const Progress& progress = {});

// Writes base + the deltas of a chain of files to `out`, a safetensors file with the base's layout;
// after each file values are rounded to the tensor's dtype. Throws FileError unless the first file
// was packed against a base with this fingerprint and has no parent, and every later one names the
// one before it as parent.
void apply_packed(const std::filesystem::path& base, const std::vector<const PackedFile*>& chain,
                  const std::filesystem::path& out, bool overwrite, const Progress& progress = {});

}  // namespace thinwire::peft
