#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/adapter_dir.h"
#include "thinwire/compressors/peft/float_bits.h"

namespace thinwire::peft {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kUnpackedAtOnce = 16384;

// Counts entries and tells the caller.
class Meter {
 public:
  Meter(const Progress& progress, std::int64_t total) : progress_(progress), total_(total) {}
  void advance(std::int64_t entries) {
    done_ += entries;
    if (progress_) progress_(done_, total_);
  }

 private:
  const Progress& progress_;
  std::int64_t total_;
  std::int64_t done_ = 0;
};

std::int64_t entries_of(const std::vector<PackedTensor>& tensors) {
  std::int64_t sum = 0;
  for (const PackedTensor& tensor : tensors) sum += tensor.info.numel();
  return sum;
}

void write_values(const PackedFile& file, std::size_t index, DeltaReader& reader,
                  SafetensorsWriter& writer, Meter& meter) {
  const PackedTensor& tensor = file.manifest().tensors[index];
  if (tensor.storage == Storage::kValue) {
    writer.write(file.dense_bytes(index));
    meter.advance(tensor.info.numel());
    return;
  }
  const DType dtype = float_dtype(tensor.info.dtype).value();
  std::array<float, kUnpackedAtOnce> delta;
  std::array<std::byte, 8 * kUnpackedAtOnce> bytes;
  for (std::int64_t begin = 0; begin < tensor.info.numel(); begin += kUnpackedAtOnce) {
    const std::int64_t n = std::min(kUnpackedAtOnce, tensor.info.numel() - begin);
    reader.read(index, begin, std::span(delta).first(static_cast<std::size_t>(n)));
    for (std::int64_t i = 0; i < n; ++i)
      detail::store_float(bytes.data(), i, dtype,
                          tensor.base_constant + delta[static_cast<std::size_t>(i)]);
    writer.write(std::span(bytes).first(static_cast<std::size_t>(n) * size_of(dtype)));
    meter.advance(n);
  }
}

}  // namespace

void unpack_to_dir(const PackedFile& file, const fs::path& directory, bool overwrite,
                   const Progress& progress) {
  const Manifest& manifest = file.manifest();
  check(manifest.base_fingerprint.empty(), file.path().string(),
        " is a delta against a base file: it can only be applied to that base");
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) throw FileError(concat("cannot create ", directory.string(), ": ", error.message()));

  std::vector<TensorInfo> layout;
  for (const PackedTensor& tensor : manifest.tensors) layout.push_back(tensor.info);
  SafetensorsWriter writer(directory / kAdapterModelName, layout, manifest.source_metadata,
                           overwrite);
  std::unique_ptr<AtomicFile> config;
  if (manifest.adapter_config) {
    config = std::make_unique<AtomicFile>(directory / kAdapterConfigName, overwrite);
    config->write(*manifest.adapter_config);
  }
  DeltaReader reader(file);
  Meter meter(progress, entries_of(manifest.tensors));
  for (std::size_t i = 0; i < manifest.tensors.size(); ++i)
    write_values(file, i, reader, writer, meter);
  // Nothing takes its name before everything is written.
  writer.commit();
  if (config) config->commit();
}

void apply_packed(const fs::path& base_path, const std::vector<const PackedFile*>& chain,
                  const fs::path& out, bool overwrite, const Progress& progress) {
  check(!chain.empty(), "apply needs at least one packed file");
  const SafetensorsFile base(base_path);
  for (std::size_t i = 0; i < chain.size(); ++i) {
    const Manifest& manifest = chain[i]->manifest();
    const std::string name = chain[i]->path().string();
    check(!manifest.base_fingerprint.empty(), name,
          " is not a delta against a base file: unpack it instead");
    const std::string expected = i == 0 ? "" : chain[i - 1]->manifest().id;
    if (manifest.parent != expected)
      throw FileError(concat("gap in the chain: ", name, " continues '", manifest.parent,
                             "', but what comes before it is '", expected, "'"));
    for (const PackedTensor& tensor : manifest.tensors) {
      const TensorInfo* found = base.find(tensor.info.name);
      if (found == nullptr || found->dtype != tensor.info.dtype ||
          found->shape != tensor.info.shape)
        throw FileError(concat("wrong base: ", base_path.string(), " has no tensor '",
                               tensor.info.name, "' of the dtype and shape that ", name, " needs"));
    }
    if (manifest.tensors.size() != base.tensors().size())
      throw FileError(concat("wrong base: ", base_path.string(), " has ", base.tensors().size(),
                             " tensors, ", name, " has ", manifest.tensors.size()));
  }
  const std::string found = fingerprint(base);
  if (found != chain[0]->manifest().base_fingerprint)
    throw FileError(concat("wrong base: ", base_path.string(), " has the fingerprint ", found, ", ",
                           chain[0]->path().string(), " was packed against ",
                           chain[0]->manifest().base_fingerprint));

  SafetensorsWriter writer(out, base.tensors(), base.metadata(), overwrite);
  std::vector<DeltaReader> readers;
  for (const PackedFile* file : chain) readers.emplace_back(*file);
  Meter meter(progress, entries_of(chain[0]->manifest().tensors));
  std::array<float, kUnpackedAtOnce> delta;
  std::array<std::byte, 8 * kUnpackedAtOnce> bytes;
  for (std::size_t index = 0; index < base.tensors().size(); ++index) {
    const TensorInfo& info = base.tensors()[index];
    const PackedFile* value = nullptr;
    for (const PackedFile* file : chain)
      if (file->manifest().tensors[index].storage == Storage::kValue) value = file;
    if (value != nullptr) {
      writer.write(value->dense_bytes(index));
      meter.advance(info.numel());
      continue;
    }
    const DType dtype = float_dtype(info.dtype).value();
    const std::size_t size = size_of(dtype);
    for (std::int64_t begin = 0; begin < info.numel(); begin += kUnpackedAtOnce) {
      const std::int64_t n = std::min(kUnpackedAtOnce, info.numel() - begin);
      const std::span<std::byte> chunk(bytes.data(), static_cast<std::size_t>(n) * size);
      std::memcpy(chunk.data(), base.bytes(index).data() + static_cast<std::size_t>(begin) * size,
                  chunk.size());
      for (DeltaReader& reader : readers) {
        reader.read(index, begin, std::span(delta).first(static_cast<std::size_t>(n)));
        for (std::int64_t i = 0; i < n; ++i) {
          const float step = delta[static_cast<std::size_t>(i)];
          if (step != 0.0f)
            detail::store_float(chunk.data(), i, dtype,
                                detail::load_float(chunk.data(), i, dtype) + step);
        }
      }
      writer.write(chunk);
      meter.advance(n);
    }
  }
  writer.commit();
}

}  // namespace thinwire::peft
