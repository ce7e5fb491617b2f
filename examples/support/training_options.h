// The command line of the training examples.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "thinwire/examples/support/common_options.h"

namespace thinwire::examples {

struct TrainingOptions : CommonOptions {
  std::string model = "cnn";
  int epochs = 3;
  std::int64_t steps = 0;       // 0: whole epochs
  std::int64_t eval_every = 0;  // steps; 0: after every epoch alone
  int batch_size = 64;          // of one rank
  double learning_rate = 0.05;
  std::string schedule = "linear";  // of the learning rate: to zero by the last step, or constant
  double momentum = 0.9;
  std::int64_t warmup_steps = 0;
  std::int64_t min_numel = 1024;  // of a parameter that is compressed
  double bucket_cap_mb = 25;
  std::int64_t train_samples = 0;         // 0: all
  std::int64_t test_samples = 0;          // 0: all
  std::filesystem::path plan;             // where lgreco(...)'s last plan is written
  bool profile = false;                   // measure the link and the codecs first, for the log
  std::string link_model;                 // empty: THINWIRE_LINK_MODEL
  bool elastic = false;                   // go on when ranks die or come
  int min_ranks = 0;                      // with `elastic`; 0: more than half
  std::optional<double> target_accuracy;  // stop when a test reaches it
};

// Adds the options to a program's command line; values land in `options`.
void add_training_options(CLI::App& app, TrainingOptions& options);

}  // namespace thinwire::examples
