// Training of a mixture-of-experts language model: experts spread over the ranks, everything else
// data-parallel.
#pragma once

#include <cstdint>
#include <string>

#include "thinwire/examples/support/language_options.h"
#include "thinwire/examples/support/text_corpus.h"
#include "thinwire/launch/world.h"
#include "thinwire/torch_ext/ddp/gradient_exchange.h"

namespace thinwire::examples {

// Everything but the seconds and the summaries is equal on all ranks.
struct LanguageResult {
  std::string backend;
  std::string compression;
  int world_size = 1;
  std::int64_t steps = 0;
  std::int64_t epochs = 0;         // whole passes over the training text
  double validation_bpc = 0;       // bits per character
  double validation_accuracy = 0;  // of the next character, 0 to 1
  double train_seconds = 0;        // without evaluation
  double step_seconds = 0;         // median
  CommunicationSummary gradients = {};
  moe::MoESummary experts = {};
  std::uint32_t parameters_crc32c = 0;  // of the replicated parameters
  bool replicas_equal = false;

  // Gradients and expert rows of this rank.
  double wire_bytes_per_step() const;
  double dense_bytes_per_step() const;
};

// Trains and evaluates. Collective. Rank 0 prints progress and writes options.log: lines "step" and
// "evaluation", and at the end the result with the keys of train_fashion_mnist and, among others,
//   "validation_bpc", "step_seconds", "moe_rows_fraction", "moe_bytes_dispatch", "gate_seconds"
// (see moe/layer/telemetry.h; these are sums over all training steps of rank 0).
LanguageResult train_language_model(launch::World& world, const TextCorpus& text,
                                    const LanguageTrainingOptions& options);

void print_summary(const LanguageResult& result);

}  // namespace thinwire::examples
