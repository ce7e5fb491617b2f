#include "thinwire/examples/support/training_options.h"

#include <CLI/CLI.hpp>

namespace thinwire::examples {

void add_training_options(CLI::App& app, TrainingOptions& options) {
  add_common_options(
      app, options,
      {.compression = "Spec of the codec for the gradients, for example 'quantize(bits=4)', "
                      "'topk(density=0.01)' or 'lgreco(family=powersgd)'; none: uncompressed; "
                      "default: THINWIRE_COMPRESSION, else none",
       .log = "Write a JSON line for every epoch, and the result, to FILE"});
  app.add_option("--model", options.model, "cnn, linear, mlp, resnet20 or resnet_wide")
      ->capture_default_str();
  app.add_option("--epochs", options.epochs, "Passes over the training set")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--steps", options.steps,
                 "Stop after so many steps, whatever --epochs says; 0: whole epochs")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--eval-every", options.eval_every,
                 "Test after every so many steps as well as after every epoch; 0: do not")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--batch-size", options.batch_size, "Images a step on one rank")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--lr", options.learning_rate, "Learning rate of SGD")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--schedule", options.schedule,
                 "Of the learning rate: linear, to zero by the last step, or constant")
      ->check(CLI::IsMember({"linear", "constant"}))
      ->capture_default_str();
  app.add_option("--momentum", options.momentum, "Momentum of SGD")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--warmup-steps", options.warmup_steps, "First steps that are sent uncompressed")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--min-numel", options.min_numel,
                 "Matrices of fewer elements are sent uncompressed; 1: none of them")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--bucket-cap-mb", options.bucket_cap_mb, "Size of a gradient bucket in MiB")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--train-samples", options.train_samples, "Use the first so many images; 0: all")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--test-samples", options.test_samples, "Test on the first so many; 0: all")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--profile", options.profile,
               "Measure the link and the codecs before the training and write them to the log, for "
               "`thinwire advise`");
  app.add_option("--plan", options.plan,
                 "Write the last plan of lgreco(...) to FILE, for `thinwire plan --show`");
  app.add_option("--link-model", options.link_model,
                 "File of `thinwire link`, for lgreco(objective=time); default: "
                 "THINWIRE_LINK_MODEL");
  app.add_flag("--elastic", options.elastic,
               "Go on without ranks that die, and with those that come later; see docs/elastic.md "
               "for how to start it");
  app.add_option("--min-ranks", options.min_ranks,
                 "With --elastic: so many ranks begin and go on without the others, and no fewer; "
                 "0: all begin, more than half of those before go on")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--target-accuracy", options.target_accuracy,
                 "Stop when a test reaches this accuracy (0 to 1)")
      ->check(CLI::Range(0.0, 1.0));
}

}  // namespace thinwire::examples
