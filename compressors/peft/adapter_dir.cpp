#include "thinwire/compressors/peft/adapter_dir.h"

#include <fstream>
#include <iterator>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/adapter_types.h"

namespace thinwire::peft {
namespace {

namespace fs = std::filesystem;

std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in) throw FileError(concat("cannot read ", path.string()));
  return text;
}

// Of a file that says nothing about its tensors, too small to be taken for a delta: scalars such as
// kohya's `.alpha`, gates and the like. They weigh nothing, and with a scale and a threshold of
// their betters they would become something else.
constexpr std::int64_t kTiny = 16;

template <typename BaseOf>
void list_tensors(DeltaSource& source, BaseOf base_of) {
  std::int64_t offset = 0;
  for (const TensorInfo& info : source.tuned.tensors()) {
    PackedTensor tensor{info, Storage::kValue};
    const std::optional<float> base = base_of(info);
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
  DeltaSource source{SafetensorsFile(model), {}, read_text(config), {}, {}};
  const auto parsed = AdapterConfig::parse(*source.adapter_config, config.string());
  if (parsed.changes_base())
    throw FileError(concat(config.string(), ": with init_lora_weights = '", parsed.init_weights,
                           "' the factors are no small deltas, and those of another base; convert "
                           "the adapter when it is saved (the PEFT library's "
                           "path_initial_model_for_weight_conversion)"));
  list_tensors(source, [&](const TensorInfo& info) {
    return info.shape.empty() ? std::nullopt : base_of_tensor(parsed.peft_type, info.name);
  });
  if (source.numel() == 0)
    source.warnings.push_back(concat(
        "no tensor of this ", parsed.peft_type,
        has_bases(parsed.peft_type) ? " adapter" : " adapter has a base that is known, so none",
        " is packed: the file holds all of them as they are"));
  return source;
}

DeltaSource open_tensors(const fs::path& file, float base_constant) {
  DeltaSource source{SafetensorsFile(file), {}, {}, {}, {}};
  list_tensors(source, [&](const TensorInfo& info) {
    return info.shape.empty() || info.numel() < kTiny ? std::nullopt : std::optional(base_constant);
  });
  return source;
}

DeltaSource open_pair(const fs::path& tuned, const fs::path& base) {
  DeltaSource source{SafetensorsFile(tuned), SafetensorsFile(base), {}, {}, {}};
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
  list_tensors(source, [](const TensorInfo&) { return std::optional(0.0f); });
  return source;
}

}  // namespace thinwire::peft
