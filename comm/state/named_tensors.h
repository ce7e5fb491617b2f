// The one shape of a checkpoint: tensors by name.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include <ATen/core/Tensor.h>

#include "thinwire/compressors/peft/safetensors.h"

namespace thinwire {

// What a part of a training program carries from one step to the next: DistributedDataParallel,
// OuterOptimizer and MoELayer save and load themselves as such a map, a rank each. Numbers and
// texts are tensors too (integer_tensor(), text_tensor()), so that whoever can keep tensors can
// keep a state, and every state is written, read and merged in the same way (comm/state/merge.h).
using NamedTensors = std::map<std::string, at::Tensor>;

// What a file must consist of: its length, and the peft::ContentHash of its bytes.
struct FileContent {
  std::uint64_t bytes = 0;
  std::string hash;
};

// One safetensors file, by temporary file and rename; overwrites. Tensors on other devices are
// copied to the CPU. Returns what was handed to the disk: nothing is read back, so that bytes which
// are damaged on their way do not get a hash that fits them. Throws FileError where the disk
// refuses, InvalidArgument for a type that safetensors files do not have.
FileContent save_tensors(const NamedTensors& tensors, const std::filesystem::path& path);
// The same tensors, bit for bit, on the CPU. Throws FileError for what is not such a file.
NamedTensors load_tensors(const std::filesystem::path& path);

// One int64, and back. integer_of() throws InvalidArgument that names the tensor where it is
// missing or something else.
at::Tensor integer_tensor(std::int64_t value);
std::int64_t integer_of(const NamedTensors& tensors, const std::string& name);
// The bytes of a text, uint8, and back; likewise.
at::Tensor text_tensor(std::string_view text);
std::string text_of(const NamedTensors& tensors, const std::string& name);

// Adds `part` to `whole` under names that begin with `prefix`; the tensors whose names do, without
// it.
void insert_part(NamedTensors& whole, std::string_view prefix, const NamedTensors& part);
NamedTensors part_of(const NamedTensors& whole, std::string_view prefix);

// Type, shape and bits.
bool same_bits(const at::Tensor& a, const at::Tensor& b);
// The elements as they lie in memory: those of a contiguous CPU tensor.
std::span<const std::byte> bytes_of(const at::Tensor& tensor);

// The safetensors name of a tensor's type, "F32"; and back. InvalidArgument for others.
std::string safetensors_dtype(const at::Tensor& tensor);
at::ScalarType scalar_type_of(const std::string& safetensors_dtype);
// A tensor of its own memory from a file's bytes. InvalidArgument for a type that torch lacks.
at::Tensor tensor_of(const peft::TensorInfo& info, std::span<const std::byte> bytes);

}  // namespace thinwire
