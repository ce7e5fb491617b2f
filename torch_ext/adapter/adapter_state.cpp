#include "thinwire/torch_ext/adapter/adapter_state.h"

#include <ATen/ATen.h>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/adapter_dir.h"

namespace thinwire {
AdapterState read_adapter(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) return adapter_of(peft::PackedFile(path));
  const peft::DeltaSource source = peft::open_adapter_dir(path);
  AdapterState adapter{source.adapter_config.value(), {}};
  for (const peft::TensorInfo& info : source.tuned.tensors())
    adapter.tensors[info.name] = tensor_of(info, source.tuned.bytes(info.name));
  return adapter;
}

AdapterState adapter_of(const peft::PackedFile& file) {
  const peft::Manifest& manifest = file.manifest();
  check(manifest.base_fingerprint.empty() && manifest.adapter_config.has_value(),
        file.path().string(), " is a delta of whole weights, not an adapter");
  AdapterState adapter{*manifest.adapter_config, {}};
  peft::DeltaReader reader(file);
  for (std::size_t i = 0; i < manifest.tensors.size(); ++i) {
    const peft::PackedTensor& tensor = manifest.tensors[i];
    if (tensor.storage == peft::Storage::kValue) {
      adapter.tensors[tensor.info.name] = tensor_of(tensor.info, file.dense_bytes(i));
      continue;
    }
    at::Tensor values = at::empty(tensor.info.shape, at::kFloat);
    reader.read(i, 0, {values.mutable_data_ptr<float>(), static_cast<std::size_t>(values.numel())});
    if (tensor.base_constant != 0) values.add_(tensor.base_constant);
    adapter.tensors[tensor.info.name] = values.to(scalar_type_of(tensor.info.dtype));
  }
  return adapter;
}

void write_adapter(const AdapterState& adapter, const std::filesystem::path& directory,
                   bool overwrite) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) throw FileError(concat("cannot create ", directory.string(), ": ", error.message()));
  std::vector<peft::TensorInfo> layout;
  for (const auto& [name, tensor] : adapter.tensors)
    layout.push_back({name, safetensors_dtype(tensor), tensor.sizes().vec()});
  peft::SafetensorsWriter writer(directory / peft::kAdapterModelName, layout, {{"format", "pt"}},
                                 overwrite);
  AtomicFile config(directory / peft::kAdapterConfigName, overwrite);
  config.write(adapter.config);
  for (const auto& [name, tensor] : adapter.tensors) {
    const at::Tensor values = tensor.detach().cpu().contiguous();
    writer.write(bytes_of(values));
  }
  // Nothing takes its name before everything is written.
  writer.commit();
  config.commit();
}

}  // namespace thinwire
