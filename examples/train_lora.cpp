// Adapts a classifier that knows the first five classes of Fashion-MNIST to the other five, by LoRA
// on ranks that meet every few steps and exchange ternary deltas:
//
//   mpirun -np 4 train_lora --outer-compression "ternary(density=0.05)"
//   torchrun --no-python --nproc-per-node 4 train_lora --output results/adapter
#include <CLI/CLI.hpp>

#include "thinwire/examples/support/lora_trainer.h"
#include "thinwire/launch/world.h"

namespace {

int train(const thinwire::examples::LoraTrainingOptions& options) {
  using namespace thinwire;
  launch::World world = examples::join(options);
  torch::manual_seed(options.seed);
  const auto data = examples::load_fashion_mnist(options.data.empty() ? examples::default_data_dir()
                                                                      : options.data);
  const auto result = examples::train_lora(world, data, options);
  if (world.rank() == 0) examples::print_summary(result, options);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Adapts a classifier to new classes of Fashion-MNIST by LoRA and outer steps.");
  thinwire::examples::LoraTrainingOptions options;
  thinwire::examples::add_lora_options(app, options);
  return thinwire::examples::run_program(app, argc, argv, [&] { return train(options); });
}
