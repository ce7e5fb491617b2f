// Several experts into one, and how alike they are.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "thinwire/compressors/peft/container.h"

namespace thinwire::peft {

enum class MergeMethod {
  // Yadav et al., "TIES-Merging", NeurIPS 2023, with the sign elected by frequency: the sign of
  // the sum of signs, positive on a tie; then the mean of weight * value of the entries that have
  // it. Trimming is what packing did. The PEFT library's ties(majority_sign_method="frequency").
  kTies,
  // The elected sign (zero on a tie) times the mean of the experts' scales; stays ternary.
  kMajority,
  // Sum of weight * value, divided by the number of experts.
  kAverage,
  // Sum of weight * value. Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023.
  kTaskArithmetic,
};
const char* name_of(MergeMethod method);
MergeMethod parse_merge_method(const std::string& text);  // InvalidArgument for other words

// What an entry becomes, in float32, sums in the order of the experts: the definition of each
// method. `values` are the experts' decoded values, `weights` one factor each. Not for kMajority,
// which needs the scales.
float merge_entry(MergeMethod method, std::span<const float> values,
                  std::span<const float> weights);

// The majority of planes, word by word; ties are zero. All have the same numel.
void majority(std::span<const PlanesView> experts, TernaryPlanes& out);

// Merges files of equal tensors into a new file, which unpacks and applies like any other: majority
// as ternary planes, the other methods as exact float32 deltas. Tensors that are kept by value must
// be equal in all files. The configuration is the first file's: where adapters of LoRA have another
// lora_alpha or use_rslora, their factors B are multiplied by the ratio of the scales, so that they
// mean what they meant; other types, ranks, base models and patterns are refused. Needs memory for
// one decoded block of each file and the largest tensor (majority: for the planes of all files).
// Throws InvalidArgument for files that do not fit together, FileError for files that cannot be
// read or written.
void merge_packed(MergeMethod method, const std::vector<const PackedFile*>& files,
                  std::vector<float> weights, const std::filesystem::path& out, bool overwrite,
                  const Progress& progress = {});

// Row-major cosines of the ternary parts of all pairs, scales included, from the bit planes alone.
std::vector<double> cosine_matrix(const std::vector<const PackedFile*>& files);

}  // namespace thinwire::peft
