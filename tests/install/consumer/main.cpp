// Codes a tensor to 8 bits and back with the installed library and LibTorch.
#include <ATen/ATen.h>
#include <thinwire/comm/backend/torch_version.h>
#include <thinwire/comm/wire/tensor_bridge.h>
#include <thinwire/compressors/codecs/codec_table.h>

#include <cstdio>
#include <vector>

int main() {
  thinwire::comm::check_torch_version();
  const at::Tensor values = at::linspace(-1, 1, 5000), decoded = at::empty_like(values);
  const auto codec = thinwire::make_codec("quantize(bits=8)");
  const auto view = thinwire::comm::view_of(values);
  std::vector<std::byte> bytes(codec->max_compressed_bytes(view.numel, view.dtype));
  bytes.resize(codec->compress(thinwire::as_const(view), {}, bytes));
  codec->decompress(bytes, {}, thinwire::comm::view_of(decoded), thinwire::WriteMode::kAssign);
  const double error = (values - decoded).abs().max().item<double>();
  std::printf("torch %s: %zu bytes, largest error %.5f\n",
              thinwire::comm::loaded_torch_version().c_str(), bytes.size(), error);
  return bytes.size() < 6000 && error < 0.005 ? 0 : 1;
}
