#include "thinwire/comm/state/named_tensors.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

constexpr std::array<std::pair<const char*, at::ScalarType>, 10> kTypes = {{{"F32", at::kFloat},
                                                                            {"F16", at::kHalf},
                                                                            {"BF16", at::kBFloat16},
                                                                            {"F64", at::kDouble},
                                                                            {"I64", at::kLong},
                                                                            {"I32", at::kInt},
                                                                            {"I16", at::kShort},
                                                                            {"I8", at::kChar},
                                                                            {"U8", at::kByte},
                                                                            {"BOOL", at::kBool}}};

const at::Tensor& member_of(const NamedTensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  check(found != tensors.end() && found->second.defined(), "a saved state has no tensor '", name,
        "'");
  return found->second;
}

}  // namespace

std::string safetensors_dtype(const at::Tensor& tensor) {
  for (const auto& [name, type] : kTypes)
    if (type == tensor.scalar_type()) return name;
  throw InvalidArgument(
      concat("safetensors files do not hold tensors of type ", toString(tensor.scalar_type())));
}

at::ScalarType scalar_type_of(const std::string& dtype) {
  for (const auto& [name, type] : kTypes)
    if (name == dtype) return type;
  throw InvalidArgument(concat("tensors of dtype ", dtype, " are not supported"));
}

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return std::as_bytes(
      std::span(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()));
}

at::Tensor tensor_of(const peft::TensorInfo& info, std::span<const std::byte> bytes) {
  at::Tensor tensor = at::empty(info.shape, scalar_type_of(info.dtype));
  THINWIRE_ASSERT(tensor.nbytes() == bytes.size());
  if (!bytes.empty()) std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

FileContent save_tensors(const NamedTensors& tensors, const std::filesystem::path& path) {
  std::vector<peft::TensorInfo> layout;
  for (const auto& [name, tensor] : tensors) {
    check(tensor.defined(), "'", name, "' of a state to be saved is undefined");
    layout.push_back({name, safetensors_dtype(tensor), tensor.sizes().vec()});
  }
  peft::SafetensorsWriter writer(path, layout, {{"format", "pt"}}, /*overwrite=*/true);
  for (const auto& [name, tensor] : tensors)
    writer.write(bytes_of(tensor.detach().cpu().contiguous()));
  writer.commit();
  return {writer.file_bytes(), writer.hash()};
}

NamedTensors load_tensors(const std::filesystem::path& path) {
  const peft::SafetensorsFile file(path);
  NamedTensors tensors;
  for (const peft::TensorInfo& info : file.tensors()) {
    try {
      tensors.emplace(info.name, tensor_of(info, file.bytes(info.name)));
    } catch (const InvalidArgument& error) {
      throw FileError(concat(path.string(), ": tensor '", info.name, "': ", error.what()));
    }
  }
  return tensors;
}

at::Tensor integer_tensor(std::int64_t value) {
  at::Tensor tensor = at::empty({1}, at::kLong);
  *tensor.mutable_data_ptr<std::int64_t>() = value;
  return tensor;
}

std::int64_t integer_of(const NamedTensors& tensors, const std::string& name) {
  const at::Tensor& tensor = member_of(tensors, name);
  check(tensor.numel() == 1 && tensor.scalar_type() == at::kLong, "'", name,
        "' of a saved state must be one int64, got ", toString(tensor.scalar_type()), " ",
        tensor.sizes());
  return tensor.item<std::int64_t>();
}

at::Tensor text_tensor(std::string_view text) {
  at::Tensor tensor = at::empty({static_cast<std::int64_t>(text.size())}, at::kByte);
  std::copy(text.begin(), text.end(), tensor.mutable_data_ptr<std::uint8_t>());
  return tensor;
}

std::string text_of(const NamedTensors& tensors, const std::string& name) {
  const at::Tensor& tensor = member_of(tensors, name);
  check(tensor.scalar_type() == at::kByte, "'", name, "' of a saved state must be bytes, got ",
        toString(tensor.scalar_type()));
  const at::Tensor flat = tensor.to(at::kCPU).contiguous();
  const auto* text = flat.const_data_ptr<std::uint8_t>();
  return {text, text + flat.numel()};
}

void insert_part(NamedTensors& whole, std::string_view prefix, const NamedTensors& part) {
  for (const auto& [name, tensor] : part) whole.emplace(concat(prefix, name), tensor);
}

NamedTensors part_of(const NamedTensors& whole, std::string_view prefix) {
  NamedTensors part;
  for (auto at = whole.lower_bound(std::string(prefix));
       at != whole.end() && at->first.starts_with(prefix); ++at)
    part.emplace(at->first.substr(prefix.size()), at->second);
  return part;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const at::Tensor x = a.detach().cpu().contiguous(), y = b.detach().cpu().contiguous();
  return x.nbytes() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

}  // namespace thinwire
