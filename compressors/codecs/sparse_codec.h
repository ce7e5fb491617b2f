// What codecs that keep a few entries have in common, topk and ternary: all but the choice of the
// entries and the payload.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "thinwire/compressors/codecs/codec.h"
#include "thinwire/compressors/kernels/topk.h"

namespace thinwire {

class SparseCodec : public Codec {
 public:
  CodecTraits traits() const final { return {.needs_error_feedback = true}; }
  std::int64_t block_size() const final { return 0; }

  std::size_t compress(ConstTensorView input, const RandomKey& key,
                       std::span<std::byte> output) const final;
  // Only the elements that were sent change.
  std::size_t compress_and_subtract(TensorView values, const RandomKey& key,
                                    std::span<std::byte> output) const final;
  void decompress(std::span<const std::byte> input, const RandomKey& key, TensorView output,
                  WriteMode mode) const final;
  bool decompress_entries(std::span<const std::byte> input, std::int64_t numel,
                          SparseEntries& entries) const final;

 protected:
  // `name` is for messages.
  explicit SparseCodec(std::string name) : name_(std::move(name)) {}

  // Throws InvalidArgument for more elements than a sparse codec takes.
  void check_numel(std::int64_t numel) const;

  // Encodes x, which is not empty; returns the bytes written. `sent` receives the chosen entries
  // with the values that decode() will give them.
  virtual std::size_t encode(std::span<const float> x, const RandomKey& key,
                             kernels::TopkSelection& sent, std::span<std::byte> output) const = 0;
  // The entries of a payload of `numel` elements, more than none. Throws FrameError for a payload
  // of the wrong size or structure.
  virtual void decode(std::span<const std::byte> input, std::int64_t numel,
                      SparseEntries& entries) const = 0;

 private:
  void decode_checked(std::span<const std::byte> input, std::int64_t numel,
                      SparseEntries& entries) const;

  std::string name_;
};

}  // namespace thinwire
