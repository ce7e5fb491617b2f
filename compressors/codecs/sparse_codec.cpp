#include "thinwire/compressors/codecs/sparse_codec.h"

#include <algorithm>

#include "thinwire/compressors/codecs/codec_checks.h"
#include "thinwire/compressors/codecs/float_view.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/compressors/kernels/host_device.h"

namespace thinwire {
namespace {

// Buffers of the calling thread, which keep their memory from call to call.
struct SparseScratch {
  std::vector<float> input;
  kernels::TopkSelection sent;
  SparseEntries received;
};
SparseScratch& sparse_scratch() {
  thread_local SparseScratch instance;
  return instance;
}

// Of a tensor with NaN or infinity those are kept, so that nothing else is sent where there are as
// many; the decoder then spoils the whole tensor.
bool is_poison(std::span<const float> values) {
  return !values.empty() && std::ranges::none_of(values, kernels::is_finite);
}

}  // namespace

void SparseCodec::check_numel(std::int64_t numel) const {
  check(numel >= 0 && numel <= kMaxSparseNumel, name_, " takes tensors of at most ",
        kMaxSparseNumel, " elements, got ", numel);
}

std::size_t SparseCodec::compress(ConstTensorView input, const RandomKey& key,
                                  std::span<std::byte> output) const {
  check_view(name_, input);
  check_on_cpu(name_, input);
  check_output(name_, output, max_compressed_bytes(input.numel, input.dtype));
  if (input.numel == 0) return 0;
  SparseScratch& s = sparse_scratch();
  return encode(as_floats(input, s.input), key, s.sent, output);
}

std::size_t SparseCodec::compress_and_subtract(TensorView values, const RandomKey& key,
                                               std::span<std::byte> output) const {
  check_view(name_, values);
  check_subtractable(values);
  check_output(name_, output, max_compressed_bytes(values.numel, values.dtype));
  if (values.numel == 0) return 0;
  const std::span rest(static_cast<float*>(values.data), static_cast<std::size_t>(values.numel));
  kernels::TopkSelection& sent = sparse_scratch().sent;
  const std::size_t bytes = encode(rest, key, sent, output);
  if (is_poison(sent.values)) {
    poison(values);
  } else {
    for (std::size_t j = 0; j < sent.indices.size(); ++j) rest[sent.indices[j]] -= sent.values[j];
  }
  return bytes;
}

void SparseCodec::decode_checked(std::span<const std::byte> input, std::int64_t numel,
                                 SparseEntries& entries) const {
  check_numel(numel);
  entries.clear();
  if (numel == 0) return check_payload_size(name_, input, 0, 0);
  decode(input, numel, entries);
}

void SparseCodec::decompress(std::span<const std::byte> input, const RandomKey&, TensorView output,
                             WriteMode mode) const {
  check_view(name_, output);
  check_on_cpu(name_, output);
  SparseEntries& received = sparse_scratch().received;
  decode_checked(input, output.numel, received);
  if (is_poison(received.values)) return poison(output);
  if (output.numel > 0) scatter(received.indices, received.values, output, mode);
}

bool SparseCodec::decompress_entries(std::span<const std::byte> input, std::int64_t numel,
                                     SparseEntries& entries) const {
  decode_checked(input, numel, entries);
  if (is_poison(entries.values)) poison(numel, entries);
  return true;
}

}  // namespace thinwire
