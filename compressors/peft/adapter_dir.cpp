#include "thinwire/compressors/peft/adapter_dir.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/json_strict.h"

namespace thinwire::peft {
namespace {

namespace fs = std::filesystem;

std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in) throw FileError(concat("cannot read ", path.string()));
  return text;
}

// Whether one of the dot-separated parts of a parameter's name begins with `word`.
bool has_part(std::string_view name, std::string_view word) {
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t dot = std::min(name.find('.', at), name.size());
    if (name.substr(at, dot - at).starts_with(word)) return true;
    at = dot + 1;
  }
  return false;
}

// What is known about the base of an adapter's tensor: its constant, or nothing.
std::optional<float> known_base(std::string_view peft_type, std::string_view name) {
  if (peft_type == "LORA" || peft_type == "ADALORA") {
    for (const char* factor : {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"})
      if (has_part(name, factor)) return 0.0f;
    return std::nullopt;
  }
  if (peft_type == "IA3") return has_part(name, "ia3_l") ? std::optional(1.0f) : std::nullopt;
  return 0.0f;
}

template <typename BaseOf>
void list_tensors(DeltaSource& source, BaseOf base_of) {
  std::int64_t offset = 0;
  for (const TensorInfo& info : source.tuned.tensors()) {
    PackedTensor tensor{info, Storage::kValue};
    const std::optional<float> base = base_of(info.name);
    if (base && float_dtype(info.dtype)) {
      tensor.storage = Storage::kTernary;
      tensor.base_constant = *base;
      tensor.offset = offset;
      offset += info.numel();
    }
    source.tensors.push_back(std::move(tensor));
  }
}

}  // namespace

DeltaPiece DeltaSource::piece(std::size_t index) const {
  const PackedTensor& tensor = tensors.at(index);
  const std::int64_t numel = tensor.info.numel();
  const DType dtype = float_dtype(tensor.info.dtype).value();
  DeltaPiece piece;
  piece.tuned = {tuned.bytes(tensor.info.name).data(), numel, dtype};
  if (base) piece.base = {base->bytes(tensor.info.name).data(), numel, dtype};
  piece.base_constant = tensor.base_constant;
  piece.offset = tensor.offset;
  piece.name = tensor.info.name;
  return piece;
}

std::int64_t DeltaSource::numel() const {
  std::int64_t sum = 0;
  for (const PackedTensor& tensor : tensors)
    if (tensor.storage == Storage::kTernary) sum += tensor.info.numel();
  return sum;
}

DeltaSource open_adapter_dir(const fs::path& directory) {
  const fs::path config = directory / kAdapterConfigName;
  const fs::path model = directory / kAdapterModelName;
  if (!fs::exists(config))
    throw FileError(
        concat(directory.string(), " is not a PEFT directory: it has no ", kAdapterConfigName));
  if (!fs::exists(model) && fs::exists(directory / "adapter_model.bin"))
    throw FileError(concat(directory.string(),
                           " holds adapter_model.bin, a pickle, which can run "
                           "code when it is read; save the adapter as ",
                           kAdapterModelName));
  DeltaSource source{SafetensorsFile(model), {}, read_text(config), {}};
  // The depth that JSON writers and readers cope with; a config is flat in practice.
  const auto json = detail::parse_json(*source.adapter_config, config.string(), 64);
  const std::string type = detail::string_member(json, "peft_type", config.string());
  list_tensors(source, [&](std::string_view name) { return known_base(type, name); });
  return source;
}

DeltaSource open_tensors(const fs::path& file, float base_constant) {
  DeltaSource source{SafetensorsFile(file), {}, {}, {}};
  list_tensors(source, [&](std::string_view) { return std::optional(base_constant); });
  return source;
}

DeltaSource open_pair(const fs::path& tuned, const fs::path& base) {
  DeltaSource source{SafetensorsFile(tuned), SafetensorsFile(base), {}, {}};
  for (const TensorInfo& info : source.tuned.tensors()) {
    const TensorInfo* other = source.base->find(info.name);
    if (other == nullptr || other->dtype != info.dtype || other->shape != info.shape)
      throw FileError(concat("tensor '", info.name, "' of ", tuned.string(),
                             other == nullptr ? " is not in " : " has another dtype or shape in ",
                             base.string()));
  }
  if (source.base->tensors().size() != source.tuned.tensors().size())
    for (const TensorInfo& info : source.base->tensors())
      if (source.tuned.find(info.name) == nullptr)
        throw FileError(
            concat("tensor '", info.name, "' of ", base.string(), " is not in ", tuned.string()));
  list_tensors(source, [](std::string_view) { return std::optional(0.0f); });
  return source;
}

}  // namespace thinwire::peft
