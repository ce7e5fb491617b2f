// Files from elsewhere: safetensors, and the packed deltas in them.
#include "thinwire/compressors/peft/container.h"
#include "thinwire/compressors/peft/safetensors.h"
#include "thinwire/tests/fuzz/fuzz_target.h"

using namespace thinwire;  // NOLINT(google-build-using-namespace): a program of one file

std::vector<fuzz::Input> fuzz::seeds() {
  std::vector<Input> all;
  const std::vector<std::vector<peft::TensorInfo>> files = {
      {},
      {{"a", "F32", {2, 3}}},
      {{"a", "F32", {}}, {"b", "BF16", {4}}, {"empty", "U8", {0}}},
      {{"base_model.model.x.lora_A.weight", "F16", {2, 8}},
       {"base_model.model.x.lora_B.weight", "F16", {8, 2}}}};
  for (const auto& tensors : files) {
    for (const auto& metadata : {peft::SafetensorsFile::Metadata{}, {{"format", "pt"}}}) {
      Input input = input_of(peft::safetensors_header(tensors, metadata));
      std::size_t bytes = 0;
      for (const auto& tensor : tensors) bytes += tensor.bytes();
      input.resize(input.size() + bytes, 1);
      all.push_back(input);
    }
  }
  return all;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = fuzz::bytes_of(data, size);
  fuzz::expect_taken_or_refused([&] {
    const peft::SafetensorsFile file({bytes.begin(), bytes.end()}, "input");
    std::size_t sum = 0;
    for (const auto& tensor : file.tensors()) {
      for (const std::byte one : file.bytes(tensor.name)) sum += std::to_integer<std::size_t>(one);
    }
    // So that the reads are not optimised away.
    if (sum == std::numeric_limits<std::size_t>::max()) throw InternalError("impossible");
  });
  fuzz::expect_taken_or_refused([&] {
    const peft::PackedFile file({bytes.begin(), bytes.end()}, "input");
    file.planes();
  });
  return 0;
}
