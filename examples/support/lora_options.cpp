#include <CLI/CLI.hpp>

#include "thinwire/examples/support/lora_trainer.h"

namespace thinwire::examples {

void add_lora_options(CLI::App& app, LoraTrainingOptions& options) {
  const auto positive = [&](const char* name, auto& value, const char* text) {
    app.add_option(name, value, text)->check(CLI::PositiveNumber)->capture_default_str();
  };
  const auto not_negative = [&](const char* name, auto& value, const char* text) {
    app.add_option(name, value, text)->check(CLI::NonNegativeNumber)->capture_default_str();
  };
  add_common_options(app, options,
                     {.compression = "Spec of the codec for the outer deltas; none: uncompressed",
                      .log = "Write a JSON line for every outer step, and the result, to FILE"});
  app.add_option("--outer-compression", options.compression, "The same as --compression");
  app.add_option("--granularity", options.granularity,
                 "What shares a threshold: tensor, group (A factors, B factors) or global")
      ->check(CLI::IsMember({"tensor", "group", "global"}))
      ->capture_default_str();
  positive("--outer-steps", options.outer_steps, "Meetings of the ranks");
  positive("--inner-steps", options.inner_steps, "Steps of a rank between two meetings");
  positive("--outer-lr", options.outer_learning_rate, "Learning rate of the outer step");
  app.add_option("--outer-momentum", options.outer_momentum, "Nesterov momentum of the outer step")
      ->check(CLI::Range(0.0, 0.999))
      ->capture_default_str();
  positive("--lr", options.learning_rate, "Learning rate of AdamW, the inner optimizer");
  positive("--rank", options.rank, "Rank of the adapter's factors");
  positive("--alpha", options.alpha, "lora_alpha; the adapter is scaled by alpha / rank");
  positive("--hidden", options.hidden, "Width of the classifier's two hidden layers");
  positive("--batch-size", options.batch_size, "Images a step on one rank");
  app.add_option("--base-classes", options.base_classes,
                 "The base learns the first so many classes")
      ->check(CLI::Range(1, 9))
      ->capture_default_str();
  not_negative("--base-steps", options.base_steps, "Steps in which the base is trained");
  app.add_option("--pack-density", options.pack_density,
                 "Entries that the packed file keeps; 0: the fewest that lose at most half a point")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  not_negative("--train-samples", options.train_samples, "Use the first so many images; 0: all");
  not_negative("--test-samples", options.test_samples, "Test on the first so many; 0: all");
  app.add_option("--base", options.base,
                 "File of the base's weights: loaded where it exists, else trained and written");
  app.add_option("--output", options.output,
                 "Folder for adapter/ and adapter.compeft; default: a temporary one");
}

}  // namespace thinwire::examples
