#include <algorithm>
#include <cstring>

#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/container.h"
#include "thinwire/compressors/peft/container_layout.h"
#include "thinwire/compressors/peft/content_hash.h"
#include "thinwire/compressors/peft/json_strict.h"
#include "thinwire/compressors/peft/row_layout.h"

namespace thinwire::peft {
namespace {

const char* name_of(Storage storage) {
  switch (storage) {
    case Storage::kTernary:
      return "ternary";
    case Storage::kDelta:
      return "delta";
    case Storage::kValue:
      return "value";
  }
  return "";
}

PlanesView block_of(PlanesView planes, std::int64_t block) {
  return planes.slice(block * kBlockEntries, block_entries(planes.numel, block));
}

// Encodes the blocks of a file, any number of times.
class BlockWriter {
 public:
  BlockWriter(const Manifest& manifest, PlanesView planes)
      : layout_(manifest), planes_(planes), buffer_(max_block_bytes(kBlockEntries)) {}

  // Valid until the next call.
  std::span<const std::byte> encode(std::int64_t block) {
    layout_.rows_of(block, rows_);
    const auto bytes =
        std::span(buffer_).first(encode_block(block_of(planes_, block), buffer_, rows_));
    contexts_ = contexts_ || bytes[0] == static_cast<std::byte>(BlockMode::kContexts);
    return bytes;
  }
  // Of a file of the blocks so far.
  const char* version() const {
    return contexts_ ? detail::kContextsVersion : detail::kFormatVersion;
  }

 private:
  const detail::RowLayout layout_;
  const PlanesView planes_;
  std::vector<BlockRows> rows_;
  std::vector<std::byte> buffer_;
  bool contexts_ = false;
};

void append_u32(std::vector<std::byte>& out, std::uint32_t value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

std::vector<TensorInfo> layout_of(const Manifest& manifest, std::size_t directory,
                                  std::size_t payload) {
  const auto blob = [](const char* name, std::size_t bytes) {
    return TensorInfo{name, "U8", {static_cast<std::int64_t>(bytes)}};
  };
  std::vector<TensorInfo> layout{blob(detail::kDirectoryName, directory),
                                 blob(detail::kBlocksName, payload)};
  for (const PackedTensor& tensor : manifest.tensors) {
    check(!tensor.info.name.starts_with(detail::kReservedPrefix),
          "tensor names must not begin with '", detail::kReservedPrefix, "', got '",
          tensor.info.name, "'");
    if (tensor.storage == Storage::kTernary) continue;
    layout.push_back(tensor.info);
    if (tensor.storage == Storage::kDelta) layout.back().dtype = "F32";
  }
  layout.push_back(blob(detail::kSealName, detail::kSealBytes));
  return layout;
}

// All of the file's metadata but the manifest itself.
SafetensorsFile::Metadata metadata_of(const Manifest& manifest, const char* version) {
  SafetensorsFile::Metadata metadata{{"format", detail::kFormatName}, {"version", version}};
  if (manifest.adapter_config) metadata["adapter_config"] = *manifest.adapter_config;
  metadata["source_metadata"] = nlohmann::json(manifest.source_metadata).dump();
  return metadata;
}

}  // namespace

std::int64_t Manifest::kept() const {
  std::int64_t sum = 0;
  for (const PackedPart& part : parts) sum += part.kept;
  return sum;
}

std::string manifest_json(const Manifest& manifest) {
  nlohmann::ordered_json json;
  json["numel"] = manifest.numel;
  json["block_entries"] = kBlockEntries;
  json["density"] = manifest.density;
  json["scale_rule"] = manifest.scale_rule;
  json["granularity"] = manifest.granularity;
  json["base_fingerprint"] = manifest.base_fingerprint;
  json["parent"] = manifest.parent;
  json["id"] = manifest.id;
  json["parts"] = nlohmann::ordered_json::array();
  for (const PackedPart& part : manifest.parts)
    json["parts"].push_back({{"name", part.name},
                             {"scale", static_cast<double>(part.scale)},
                             {"numel", part.numel},
                             {"kept", part.kept},
                             {"standard_deviation", part.standard_deviation},
                             {"relative_error", part.relative_error}});
  json["tensors"] = nlohmann::ordered_json::array();
  for (const PackedTensor& tensor : manifest.tensors) {
    nlohmann::ordered_json entry = {{"name", tensor.info.name},
                                    {"dtype", tensor.info.dtype},
                                    {"shape", tensor.info.shape},
                                    {"storage", name_of(tensor.storage)},
                                    {"base", static_cast<double>(tensor.base_constant)}};
    if (tensor.storage == Storage::kTernary) entry["part"] = tensor.part;
    json["tensors"].push_back(std::move(entry));
  }
  return json.dump();
}

std::uint64_t packed_bytes(const Manifest& manifest, PlanesView planes) {
  BlockWriter writer(manifest, planes);
  std::size_t payload = 0;
  for (std::int64_t block = 0; block < block_count(planes.numel); ++block)
    payload += writer.encode(block).size();
  const auto blocks = static_cast<std::size_t>(block_count(planes.numel));
  const auto layout = layout_of(manifest, blocks * detail::kDirectoryEntryBytes, payload);
  SafetensorsFile::Metadata metadata = metadata_of(manifest, writer.version());
  Manifest named = manifest;
  named.id = ContentHash().hex();  // any id has this length
  metadata["manifest"] = manifest_json(named);
  std::uint64_t bytes = safetensors_header(layout, metadata).size();
  for (const TensorInfo& tensor : layout) bytes += tensor.bytes();
  return bytes;
}

std::string write_packed(const std::filesystem::path& path, Manifest manifest, PlanesView planes,
                         const DenseSource& dense, bool overwrite, const Progress& progress) {
  check(planes.numel == manifest.numel, "the manifest describes ", manifest.numel,
        " entries, the planes hold ", planes.numel);
  AtomicFile file(path, overwrite);  // refuses before the long work, not after it
  const std::int64_t blocks = block_count(planes.numel);
  const auto report = [&](std::int64_t blocks_done) {
    if (progress)
      progress(std::min(blocks_done * kBlockEntries, 2 * planes.numel), 2 * planes.numel);
  };

  BlockWriter writer(manifest, planes);
  std::vector<std::byte> directory;
  std::size_t payload = 0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::span<const std::byte> bytes = writer.encode(block);
    append_u32(directory, static_cast<std::uint32_t>(bytes.size()));
    append_u32(directory, crc32c(bytes));
    payload += bytes.size();
    report(block + 1);
  }

  SafetensorsFile::Metadata metadata = metadata_of(manifest, writer.version());
  manifest.id.clear();
  ContentHash hash;
  hash.update(manifest_json(manifest));
  for (const auto& [key, value] : metadata) hash.update(concat(key, '\0', value, '\0'));
  hash.update(directory);
  for (std::size_t i = 0; i < manifest.tensors.size(); ++i)
    if (manifest.tensors[i].storage != Storage::kTernary) hash.update(dense(i));
  manifest.id = hash.hex();
  metadata["manifest"] = manifest_json(manifest);

  std::uint32_t crc = 0;
  const auto put = [&](std::span<const std::byte> bytes) {
    crc = crc32c(bytes, crc);
    file.write(bytes);
  };
  const std::string header =
      safetensors_header(layout_of(manifest, directory.size(), payload), metadata);
  put(std::as_bytes(std::span(header)));
  put(directory);
  const std::uint32_t header_crc = crc;
  for (std::int64_t block = 0; block < blocks; ++block) {
    put(writer.encode(block));
    report(blocks + block + 1);
  }
  for (std::size_t i = 0; i < manifest.tensors.size(); ++i)
    if (manifest.tensors[i].storage != Storage::kTernary) put(dense(i));
  put(std::as_bytes(std::span(&header_crc, 1)));
  const std::uint32_t file_crc = crc;
  put(std::as_bytes(std::span(&file_crc, 1)));
  file.commit();
  return manifest.id;
}

}  // namespace thinwire::peft
