#include "thinwire/compressors/codec.h"

#include "thinwire/compressors/codec_checks.h"

namespace thinwire {

std::size_t Codec::compress_and_reconstruct(ConstTensorView input, const RandomKey& key,
                                            std::span<std::byte> output,
                                            TensorView reconstruction) const {
  check_same_kind(input, reconstruction);
  const std::size_t bytes = compress(input, key, output);
  decompress(output.first(bytes), key, reconstruction, WriteMode::kAssign);
  return bytes;
}

}  // namespace thinwire
