// Trains an image classifier on Fashion-MNIST, data-parallel, with compressed gradients:
//
//   mpirun -np 2 train_fashion_mnist --compression "quantize(bits=4)"
//   torchrun --no-python --nproc-per-node 2 train_fashion_mnist --compression "quantize(bits=4)"
//
// With --elastic it goes on when ranks die, and takes in those that come later (docs/elastic.md).
#include <CLI/CLI.hpp>
#include <chrono>

#include "thinwire/examples/support/elastic_trainer.h"
#include "thinwire/examples/support/trainer.h"
#include "thinwire/launch/world.h"

namespace {

int train_whoever_is_there(const thinwire::examples::TrainingOptions& options) {
  using namespace thinwire;
  const std::chrono::milliseconds timeout(static_cast<std::int64_t>(1e3 * options.timeout_seconds));
  launch::ElasticWorld world(
      {.init = {.backend = options.backend, .timeout = timeout}, .min_ranks = options.min_ranks});
  torch::manual_seed(options.seed);
  const auto model = examples::make_classifier(options.model);
  const auto data = examples::load_fashion_mnist(options.data.empty() ? examples::default_data_dir()
                                                                      : options.data);
  const auto result = examples::train_elastic(world, model, data, options);
  if (world.rank() == 0) examples::print_summary(result);
  return result.replicas_equal ? 0 : 1;
}

int train(const thinwire::examples::TrainingOptions& options) {
  using namespace thinwire;
  if (options.elastic) return train_whoever_is_there(options);
  launch::World world = examples::join(options);
  torch::manual_seed(options.seed);
  const auto model = examples::make_classifier(options.model);
  const auto data = examples::load_fashion_mnist(options.data.empty() ? examples::default_data_dir()
                                                                      : options.data);
  const auto result = examples::train_classifier(world, model, data, options);
  if (world.rank() == 0) examples::print_summary(result);
  return result.replicas_equal ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains an image classifier on Fashion-MNIST with compressed gradients.");
  thinwire::examples::TrainingOptions options;
  thinwire::examples::add_training_options(app, options);
  return thinwire::examples::run_program(app, argc, argv, [&] { return train(options); });
}
