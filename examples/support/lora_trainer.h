// Adapting a classifier to new classes by LoRA on ranks that meet seldom.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "thinwire/examples/support/common_options.h"
#include "thinwire/examples/support/fashion_mnist.h"
#include "thinwire/examples/support/models.h"
#include "thinwire/launch/world.h"
#include "thinwire/torch_ext/outer/outer_optimizer.h"

namespace thinwire::examples {

struct LoraTrainingOptions : CommonOptions {
  LoraTrainingOptions() { compression = "ternary(density=0.05)"; }  // of the outer deltas

  std::string granularity = "tensor";
  std::int64_t outer_steps = 40;
  std::int64_t inner_steps = 10;
  double outer_learning_rate = 1;
  double outer_momentum = 0;
  double learning_rate = 3e-3;  // of AdamW
  std::int64_t rank = 8;
  double alpha = 16;
  std::int64_t hidden = 512;  // width of the classifier
  int batch_size = 32;        // of one rank
  int base_classes = 5;       // the base knows the first so many classes
  std::int64_t base_steps = 300;
  double pack_density = 0;         // 0: searched for, with the scale, on held-out images
  std::int64_t train_samples = 0;  // 0: all
  std::int64_t test_samples = 0;   // 0: all
  std::filesystem::path base;      // loaded where it exists, else trained and written
  std::filesystem::path output;    // folder of adapter/ and adapter.compeft; empty: a temporary one
};

void add_lora_options(CLI::App& app, LoraTrainingOptions& options);

// Equal on all ranks but for the seconds and bytes, which are this rank's.
struct LoraResult {
  std::int64_t adapter_parameters = 0;
  double base_accuracy = 0;    // on the new classes, before adapting; 0 to 1
  double test_accuracy = 0;    // on the new classes
  double packed_accuracy = 0;  // the same, of the packed file on a fresh base
  std::uint64_t adapter_bytes = 0, packed_bytes = 0;
  double packed_density = 0;  // how it was packed; rank 0 alone knows
  std::string packed_scale;
  double train_seconds = 0;
  OuterSummary outer;
  std::uint32_t parameters_crc32c = 0;
};

// Trains the base on its classes (or loads it) and the adapter on the others, writes the adapter as
// a PEFT directory and as a packed file, puts the packed file on a fresh base of every rank and
// evaluates again. Collective. Rank 0 prints progress and writes options.log, whose last line has
// the keys of train_fashion_mnist (a step being an outer step) and more.
LoraResult train_lora(launch::World& world, const FashionMnist& data,
                      const LoraTrainingOptions& options);

void print_summary(const LoraResult& result, const LoraTrainingOptions& options);

}  // namespace thinwire::examples
