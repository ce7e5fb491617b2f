#include "thinwire/examples/support/language_options.h"

#include <CLI/CLI.hpp>

#include "thinwire/common/error.h"

namespace thinwire::examples {

void add_language_options(CLI::App& app, LanguageTrainingOptions& options) {
  const auto positive = [&](const char* name, auto& value, const char* text) {
    app.add_option(name, value, text)->check(CLI::PositiveNumber)->capture_default_str();
  };
  const auto natural = [&](const char* name, auto& value, const char* text) {
    app.add_option(name, value, text)->check(CLI::NonNegativeNumber)->capture_default_str();
  };
  add_common_options(
      app, options,
      {.compression = "Spec of the codec for the gradients of everything but the experts; none: "
                      "uncompressed; default: THINWIRE_COMPRESSION, else none",
       .seed = "Seed of weights, batches, hashes and codecs",
       .data = "A text file; default: what the program `bible` prints",
       .log = "Write JSON lines, the last of them the result, to FILE"});
  app.add_option("--dedup", options.dedup,
                 "Merging of similar rows: off, duplicates, or lsh(hashes=6, hash_dim=16, ...)")
      ->capture_default_str();
  app.add_option("--rows", options.rows,
                 "Row codec: none, cast(bf16), quantize(bits=8), spectral(bits=2.5) with unbiased "
                 "gradients, ...; or 'FORWARD; BACKWARD', or one for each leg: dispatch; combine; "
                 "backward of combine; backward of dispatch")
      ->capture_default_str();
  positive("--steps", options.steps, "Training steps");
  positive("--layers", options.layers, "Transformer layers");
  positive("--dim", options.dim, "Width of the model");
  positive("--heads", options.heads, "Attention heads");
  natural("--hidden", options.hidden, "Hidden width of one expert; 0: twice the width");
  positive("--experts", options.experts, "Experts of a layer, over all ranks");
  positive("--top-k", options.top_k, "Experts of a token");
  natural("--capacity", options.capacity_factor, "Capacity factor; 0: no token is dropped");
  natural("--chunks", options.chunks,
          "Pieces in which rows travel while the experts compute; 0: chosen by size");
  app.add_flag("--share-rows,!--no-share-rows", options.share_rows,
               "Send a token once to a rank that holds several of its experts");
  positive("--context", options.context, "Bytes of one sequence");
  positive("--tokens", options.tokens, "Tokens of one rank in one step");
  positive("--validation-tokens", options.validation_tokens, "Tokens of one evaluation, all ranks");
  natural("--evaluate-every", options.evaluate_every, "Steps between evaluations; 0: at the end");
  positive("--log-every", options.log_every, "Steps between lines of the log");
  positive("--lr", options.learning_rate, "Peak learning rate of AdamW");
  app.add_option("--load", options.load,
                 "Begin with the weights and bases of FILE; its options for rows and merging, and "
                 "the optimiser's state, are not taken over");
  app.add_option("--save", options.save,
                 "Write weights and bases to FILE at the end, for any number of ranks");
}

LanguageModelOptions model_options(const LanguageTrainingOptions& options) {
  check(options.tokens % options.context == 0, "--tokens ", options.tokens,
        " is not a whole number of sequences of --context ", options.context);
  LanguageModelOptions model;
  model.layers = options.layers;
  model.dim = options.dim;
  model.heads = options.heads;
  model.context = options.context;
  model.seed = options.seed;
  model.moe.router = {.dim = options.dim, .experts = options.experts, .top_k = options.top_k};
  model.moe.hidden = options.hidden > 0 ? options.hidden : 2 * options.dim;
  model.moe.capacity_factor = options.capacity_factor;
  model.moe.rows = moe::parse_rows(options.rows);
  model.moe.dedup = moe::parse_dedup(options.dedup);
  model.moe.chunks = options.chunks;
  model.moe.share_rows = options.share_rows;
  return model;
}

}  // namespace thinwire::examples
