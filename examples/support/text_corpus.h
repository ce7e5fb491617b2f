// A text as bytes, for character models.
#pragma once

#include <cstdint>
#include <filesystem>

#include <torch/types.h>

namespace thinwire::examples {

// The first nine tenths of a text are for training, the rest for validation.
struct TextCorpus {
  torch::Tensor train;       // [n], uint8
  torch::Tensor validation;  // [m], uint8
};

// Reads the bytes of `file`; an empty path: what Debian's package bible-kjv prints, 4.4 MB of
// English. Throws FileError when there is no such text or it is shorter than 1000 bytes.
TextCorpus load_text(const std::filesystem::path& file);

// Inputs and targets of next-byte prediction, [count, context] int64 each. Sequence i begins at a
// position that depends on (seed, step, first + i) alone, so that ranks can share out one batch.
struct TextBatch {
  torch::Tensor input;
  torch::Tensor target;
};
TextBatch sample_batch(const torch::Tensor& text, std::int64_t count, std::int64_t context,
                       std::uint64_t seed, std::uint64_t step, std::int64_t first);

// Sequences `first`, `first + stride`, ... of the text cut into pieces of `context` bytes, `count`
// of them; beyond the end it starts again.
TextBatch slice_batch(const torch::Tensor& text, std::int64_t count, std::int64_t context,
                      std::int64_t first, std::int64_t stride);

}  // namespace thinwire::examples
