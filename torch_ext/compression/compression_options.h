// What the user asks for.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace thinwire {

// How gradients are compressed. Every rank must pass the same values. A spec converts to it.
struct CompressionOptions {
  CompressionOptions() = default;
  CompressionOptions(std::string text) : spec(std::move(text)) {}
  CompressionOptions(const char* text) : spec(text) {}

  // Spec of a codec, `quantize(bits=4)`, of the policy that gives every layer its own,
  // `lgreco(family=powersgd, reference=4)`, see docs/lgreco.md, or of the one that finds by trying
  // what makes steps short, `auto`, see docs/auto.md; all with error_feedback=auto|on|off where
  // wanted. "none" sends everything uncompressed. Empty: THINWIRE_COMPRESSION, else none.
  std::string spec;
  // The first so many steps are sent uncompressed, while gradients are large and turn quickly.
  std::int64_t warmup_steps = 0;
  // Layers of fewer elements, and all with less than two dimensions (biases, normalisation), are
  // sent uncompressed: they weigh little and suffer most.
  std::int64_t min_numel = 1024;
  bool compress_1d = false;
  // Exceptions by name: the first entry whose pattern matches a parameter's name gives its spec,
  // whatever the two rules above say. '*' matches any text, '?' one character.
  std::vector<std::pair<std::string, std::string>> overrides;
  // Source of all randomness of the codecs.
  std::uint64_t seed = 0;
  // File that `thinwire link` wrote, the same on all ranks; lgreco(objective=time) reckons with it,
  // and so does the choice of the strategy. Empty: THINWIRE_LINK_MODEL, else none.
  std::string link_model = {};
  // How compressed layers are averaged, see docs/algorithms.md: "auto", which with a link model may
  // also be not to compress, or dense, scatter_reduce, gather_reduce, sparse, low_rank or
  // hierarchical for all of them. One that a layer's codec cannot take is an error.
  std::string strategy = "auto";
  // Where each rank writes the gradients that it brings in `record_steps` steps from `record_from`
  // on, FILE.RANK, for `thinwire replay FILE`; empty: nowhere. Costs their memory.
  std::string record_gradients = {};
  std::int64_t record_from = 0;
  std::int64_t record_steps = 20;
};

}  // namespace thinwire
