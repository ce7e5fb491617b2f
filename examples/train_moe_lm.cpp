// Trains a mixture-of-experts language model on the bytes of a text, experts spread over the ranks:
//
//   mpirun -np 4 train_moe_lm --rows "spectral(bits=2.5)"
//   torchrun --no-python --nproc-per-node 4 train_moe_lm --dedup "lsh(hashes=6, hash_dim=16)"
#include <CLI/CLI.hpp>

#include "thinwire/examples/support/language_trainer.h"
#include "thinwire/launch/world.h"

namespace {

int train(const thinwire::examples::LanguageTrainingOptions& options) {
  using namespace thinwire;
  examples::check_on_cpu(options, "MoELayer");
  launch::World world = examples::join(options);
  const auto text = examples::load_text(options.data);
  const auto result = examples::train_language_model(world, text, options);
  if (world.rank() == 0) examples::print_summary(result);
  return result.replicas_equal ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a mixture-of-experts language model with few bytes between the ranks.");
  thinwire::examples::LanguageTrainingOptions options;
  thinwire::examples::add_language_options(app, options);
  return thinwire::examples::run_program(app, argc, argv, [&] { return train(options); });
}
