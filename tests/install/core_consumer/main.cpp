// Codes a vector to 4 bits and back with the installed core library.
#include <thinwire/compressors/codecs/codec_table.h>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  std::vector<float> values(1000), decoded(1000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(0.1f * float(i));
  const auto codec = thinwire::make_codec("quantize(bits=4, bucket=1000)");
  const auto size = std::int64_t(values.size());
  std::vector<std::byte> bytes(codec->max_compressed_bytes(size, thinwire::DType::kFloat32));
  const thinwire::RandomKey key{};
  bytes.resize(codec->compress({values.data(), size, thinwire::DType::kFloat32}, key, bytes));
  codec->decompress(bytes, key, {decoded.data(), size, thinwire::DType::kFloat32},
                    thinwire::WriteMode::kAssign);
  float error = 0;
  for (std::size_t i = 0; i < values.size(); ++i)
    error = std::fmax(error, std::fabs(values[i] - decoded[i]));
  std::printf("%zu bytes, largest error %.4f\n", bytes.size(), error);
  return bytes.size() < 600 && error <= 1.001f / 15 ? 0 : 1;
}
