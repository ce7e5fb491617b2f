// A codec turns one tensor into bytes and back. It knows nothing of ranks, groups or the
// environment; how a bucket is averaged over the ranks with it is the business of comm/average.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "thinwire/common/dtype.h"
#include "thinwire/common/philox.h"
#include "thinwire/compressors/view/tensor_view.h"

namespace thinwire {

namespace kernels {
struct PieceFormat;
enum class EntryForm : std::uint8_t;
}  // namespace kernels

// The codecs. The values are part of the frame format: append, never renumber.
enum class CodecId : std::uint16_t {
  kIdentity = 0,
  kCast = 1,
  kQuantize = 2,
  kTopk = 3,
  kRandomk = 4,
  kOnebit = 5,
  kTerngrad = 6,
  kTernary = 7,
  kPowerSgd = 8,
  kEcsq = 9,
  kSpectral = 10,
};

// How codecs that send chosen entries store their values: coded, see value_levels.h.
enum class ValueType : std::uint8_t { kFloat32, kFloat16, kBFloat16, kCoded };

class Codec;

// The parameters of a codec as numbers, for whoever plans with it: nobody reads its spec again.
struct CodecFacts {
  // What a payload holds: values block by block (or of the whole tensor, where they cannot be cut);
  // chosen entries with their indices; two factors; parts of many layers under one step (ecsq.h,
  // spectral.h).
  enum class Form { kBlocks, kSparse, kLowRank, kSlots };

  CodecId id = CodecId::kIdentity;
  Form form = Form::kBlocks;
  // Of quantize: bits an element, headers left out.
  std::optional<int> bits = {};
  // Of codecs that send chosen entries, with indices or without: kept_count(density, numel) of
  // them, or about so many.
  std::optional<double> density = {};
  // Of these: how their values travel.
  ValueType values = ValueType::kFloat32;
  // Of ternary: standard deviations in its scale; none: the scale is a mean.
  std::optional<double> alpha = {};
  // Of powersgd: columns of a factor, how often both are improved, and so travel, and the codec of
  // each, see factor_codec().
  int rank = 0;
  int iterations = 1;
  std::shared_ptr<const Codec> factors = {};
  // Of spectral: directions of a side of a matrix, and steps from one basis to the next.
  int directions = 0;
  int every = 0;
};

struct CodecTraits {
  // Payloads of equal length can be added element by element and decode to the sum (randomk with a
  // shared seed); such codecs ride on all_reduce. Not powersgd: each of its factors can be summed
  // while the ranks share the other, but not its payload, which holds both.
  bool summable = false;
  // E[decode(encode(x))] = x over the keys.
  bool unbiased = false;
  // decode(encode(x)) == x, bit for bit.
  bool lossless = false;
  // compress() always writes max_compressed_bytes(numel, dtype) bytes.
  bool fixed_size = false;
  // Training diverges or loses accuracy without a residual; error feedback is on by default.
  bool needs_error_feedback = false;
  // A tensor of one repeated finite value decodes to exactly that value.
  bool exact_on_constants = false;
};

// Non-zero entries: ascending indices and their values.
struct SparseEntries {
  std::vector<std::uint32_t> indices;
  std::vector<float> values;

  std::size_t size() const { return indices.size(); }
  void clear();
  void add(std::uint32_t index, float value);
  // With room for somewhat more, since the next payload may have more.
  void resize(std::size_t count);
};

// Immutable once made; every function is safe to call from several threads at once. On CUDA views
// all work is queued on the view's stream and the byte buffers are device memory.
//
// Non-finite input: where an element is NaN or infinite, decoding gives a non-finite value for at
// least that element, so that a poisoned gradient is still seen as one after averaging.
class Codec {
 public:
  virtual ~Codec() = default;

  // Canonical text, `quantize(bits=4, bucket=1024, norm=minmax, rounding=nearest)`; make_codec()
  // of it gives an equal codec.
  virtual std::string spec() const = 0;
  virtual CodecTraits traits() const = 0;
  virtual CodecFacts facts() const = 0;

  // Elements that are coded together: a tensor that is cut at multiples of it and coded piecewise
  // (with RandomKey::first_element set) decodes to the same values as the whole.
  // 0: pieces do not decode to the same values as the whole (topk, powersgd).
  virtual std::int64_t block_size() const = 0;
  // Whether a tensor can be cut between ranks, each of which encodes its part: pieces decode to
  // what the whole does, and everyone knows how long they are.
  bool can_be_cut() const { return block_size() > 0 && traits().fixed_size; }

  // How the kernels of averaging in GPU memory code it; none where they do not.
  virtual std::optional<kernels::PieceFormat> piece_format() const;
  // The same for codecs that send chosen entries: those of largest magnitude, as many as
  // facts().density tells.
  virtual std::optional<kernels::EntryForm> entry_form() const;

  // The same codec with another density, in (0, 1]; null for codecs without one.
  virtual std::shared_ptr<const Codec> with_density(double density) const;

  // Most bytes that compress() can write; exactly that many for a fixed_size codec.
  virtual std::size_t max_compressed_bytes(std::int64_t numel, DType dtype) const = 0;

  // Encodes `input` into `output`, which must hold max_compressed_bytes() and needs no alignment;
  // returns the bytes written. Throws InvalidArgument for a dtype or device that the codec does
  // not take. Allocates nothing once warm.
  virtual std::size_t compress(ConstTensorView input, const RandomKey& key,
                               std::span<std::byte> output) const = 0;

  // Decodes `input` into `output`, of the numel and dtype that were compressed. Throws FrameError
  // if `input` cannot be such a payload; never reads or writes out of bounds, whatever the bytes.
  // kAccumulate adds the decoded values to `output`, rounding once per element.
  // Codecs whose payload names only what a shared key selects (randomk) get the key back here.
  virtual void decompress(std::span<const std::byte> input, const RandomKey& key, TensorView output,
                          WriteMode mode) const = 0;

  // compress(), and `reconstruction` (numel, dtype and device of `input`) becomes what
  // decompress() of the payload assigns: the form that error feedback needs, in one pass where the
  // codec can. `reconstruction` may be the memory of `input` itself. The bytes are compress()'s.
  virtual std::size_t compress_and_reconstruct(ConstTensorView input, const RandomKey& key,
                                               std::span<std::byte> output,
                                               TensorView reconstruction) const;

  // compress(), and `values` (float32 in host memory) keeps what the payload lost: what
  // decompress() assigns is subtracted. The bytes are compress()'s.
  virtual std::size_t compress_and_subtract(TensorView values, const RandomKey& key,
                                            std::span<std::byte> output) const;

  // For codecs that send few elements: reads what decompress() of a tensor of `numel` elements
  // would set, all others being zero, and returns true. False, without reading anything, for
  // codecs that are not of this kind. Throws as decompress().
  virtual bool decompress_entries(std::span<const std::byte> input, std::int64_t numel,
                                  SparseEntries& entries) const;
};

using CodecPtr = std::shared_ptr<const Codec>;

}  // namespace thinwire
