// The command line of train_moe_lm.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "thinwire/examples/support/common_options.h"
#include "thinwire/examples/support/moe_language_model.h"

namespace thinwire::examples {

struct LanguageTrainingOptions : CommonOptions {
  std::string dedup = "off";
  std::string rows = "none";
  int steps = 200;
  std::int64_t layers = 2;
  std::int64_t dim = 128;
  std::int64_t heads = 4;
  std::int64_t hidden = 0;  // of one expert; 0: twice the width
  std::int64_t experts = 8;
  std::int64_t top_k = 2;
  double capacity_factor = 0;
  int chunks = 0;
  bool share_rows = true;
  std::int64_t context = 128;
  std::int64_t tokens = 1024;              // of one rank and step
  std::int64_t validation_tokens = 65536;  // of all ranks
  int evaluate_every = 0;                  // 0: only at the end
  int log_every = 50;
  double learning_rate = 2e-3;
  std::filesystem::path load;  // weights to begin with
  std::filesystem::path save;
};

void add_language_options(CLI::App& app, LanguageTrainingOptions& options);

// Throws InvalidArgument for options that cannot work together.
LanguageModelOptions model_options(const LanguageTrainingOptions& options);

}  // namespace thinwire::examples
