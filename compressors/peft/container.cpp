#include "thinwire/compressors/peft/container.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/container_layout.h"
#include "thinwire/compressors/peft/json_strict.h"
#include "thinwire/compressors/peft/row_layout.h"

namespace thinwire::peft {
namespace {

using detail::Json;

std::uint32_t read_u32(const std::byte* at) {
  std::uint32_t value;
  std::memcpy(&value, at, 4);
  return value;
}

Storage storage_of(const std::string& text, const std::string& where) {
  if (text == "ternary") return Storage::kTernary;
  if (text == "delta") return Storage::kDelta;
  if (text == "value") return Storage::kValue;
  throw FileError(concat(where, ": unknown storage '", text, "'"));
}

float finite_float(const Json& object, const char* key, const std::string& where) {
  const auto value = static_cast<float>(detail::number_member(object, key, where));
  if (!std::isfinite(value)) throw FileError(concat(where, ": '", key, "' is not finite"));
  return value;
}

PackedPart part_of(const Json& json, const std::string& where) {
  PackedPart part;
  part.name = detail::string_member(json, "name", where);
  part.scale = finite_float(json, "scale", where);
  part.numel = detail::integer_member(json, "numel", where);
  part.kept = detail::integer_member(json, "kept", where);
  part.standard_deviation = detail::number_member(json, "standard_deviation", where);
  part.relative_error = detail::number_member(json, "relative_error", where);
  if (part.scale < 0 || part.kept > part.numel)
    throw FileError(concat(where, ": part '", part.name, "' has scale ", part.scale, " and keeps ",
                           part.kept, " of ", part.numel, " entries"));
  return part;
}

}  // namespace

PackedFile::PackedFile(const std::filesystem::path& path, Check check)
    : PackedFile(SafetensorsFile(path), check) {}

PackedFile::PackedFile(std::vector<std::byte> content, std::string name, Check check)
    : PackedFile(SafetensorsFile(std::move(content), std::move(name)), check) {}

PackedFile::PackedFile(SafetensorsFile file, Check check) : file_(std::move(file)) {
  const auto& metadata = file_.metadata();
  const auto value = [&](const char* key) {
    const auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  if (value("format") != detail::kFormatName) fail("it is not a ComPEFT file");
  const bool contexts = value("version") == detail::kContextsVersion;
  if (!contexts && value("version") != detail::kFormatVersion)
    fail(concat("its format version is '", value("version"), "', this library reads '",
                detail::kFormatVersion, "' and '", detail::kContextsVersion, "'"));
  directory_ = file_.bytes(detail::kDirectoryName);
  payload_ = file_.bytes(detail::kBlocksName);
  const auto seal = file_.bytes(detail::kSealName);
  const auto all = file_.file_bytes();
  // Positions first: the two checksums are only meaningful over the documented ranges.
  if (seal.size() != detail::kSealBytes || seal.data() + seal.size() != all.data() + all.size())
    fail("its seal is not the last tensor");
  std::uint64_t header_length;
  std::memcpy(&header_length, all.data(), 8);
  if (directory_.data() != all.data() + 8 + header_length ||
      payload_.data() != directory_.data() + directory_.size())
    fail("directory and blocks are not the first tensors");
  const auto head = all.first(8 + header_length + directory_.size());
  if (crc32c(head) != read_u32(seal.data())) fail("the checksum of its header does not match");
  if (check == Check::kAll && crc32c(all.first(all.size() - 4)) != read_u32(seal.data() + 4))
    fail("the checksum of its content does not match");

  read_manifest();
  if (contexts) row_layout_ = std::make_shared<const detail::RowLayout>(manifest_);
  read_blocks();
}

void PackedFile::fail(const std::string& what) const {
  throw FileError(concat(path().string(), ": ", what));
}

void PackedFile::read_manifest() {
  const std::string where = path().string();
  const auto& metadata = file_.metadata();
  if (!metadata.contains("manifest")) fail("its manifest is missing");
  const Json json = parse_json(metadata.at("manifest"), where, 5);
  manifest_.numel = detail::integer_member(json, "numel", where);
  if (manifest_.numel >> 56 != 0) fail("its vector is too long");
  if (detail::integer_member(json, "block_entries", where) != kBlockEntries)
    fail(concat("its blocks do not have ", kBlockEntries, " entries"));
  manifest_.density = detail::number_member(json, "density", where);
  manifest_.scale_rule = detail::string_member(json, "scale_rule", where);
  manifest_.granularity = detail::string_member(json, "granularity", where);
  manifest_.base_fingerprint = detail::string_member(json, "base_fingerprint", where);
  manifest_.parent = detail::string_member(json, "parent", where);
  manifest_.id = detail::string_member(json, "id", where);
  const Json& parts = detail::member(json, "parts", where);
  if (!parts.is_array()) fail("'parts' must be an array");
  for (const Json& part : parts) manifest_.parts.push_back(part_of(part, where));

  const Json& tensors = detail::member(json, "tensors", where);
  if (!tensors.is_array()) fail("'tensors' must be an array");
  std::vector<std::int64_t> part_numel(manifest_.parts.size(), 0);
  std::size_t dense_tensors = 0;
  std::int64_t offset = 0;
  for (const Json& entry : tensors) {
    PackedTensor tensor;
    tensor.info.name = detail::string_member(entry, "name", where);
    const std::string at = concat(where, ": tensor '", tensor.info.name, "'");
    tensor.info.dtype = detail::string_member(entry, "dtype", at);
    const auto element = safetensors_element_bytes(tensor.info.dtype);
    if (!element) throw FileError(concat(at, ": unknown dtype '", tensor.info.dtype, "'"));
    const Json& shape = detail::member(entry, "shape", at);
    if (!shape.is_array()) throw FileError(concat(at, ": 'shape' must be an array"));
    std::int64_t numel = 1;
    for (const Json& extent : shape) {
      tensor.info.shape.push_back(detail::as_size(extent, at));
      // 2^56 entries at most, so that bytes and sums stay far from overflow.
      if (__builtin_mul_overflow(numel, tensor.info.shape.back(), &numel) || numel >> 56 != 0)
        throw FileError(concat(at, ": the shape overflows"));
    }
    tensor.storage = storage_of(detail::string_member(entry, "storage", at), at);
    tensor.base_constant = finite_float(entry, "base", at);
    if (!manifest_.tensors.empty() && manifest_.tensors.back().info.name >= tensor.info.name)
      throw FileError(concat(at, ": tensors must be in order of their names"));
    if (tensor.storage != Storage::kValue && !float_dtype(tensor.info.dtype))
      throw FileError(concat(at, ": a delta of dtype ", tensor.info.dtype, " is not possible"));
    if (tensor.storage == Storage::kTernary) {
      tensor.part = static_cast<std::size_t>(detail::integer_member(entry, "part", at));
      if (tensor.part >= manifest_.parts.size())
        throw FileError(concat(at, ": no such part: ", tensor.part, ", the file has ",
                               manifest_.parts.size(), " parts from 0 on"));
      tensor.offset = offset;
      if (numel > manifest_.numel - offset)
        throw FileError(concat(at, ": its entries pass the ", manifest_.numel, " of the vector"));
      offset += numel;
      part_numel[tensor.part] += numel;
    } else {
      TensorInfo expected = tensor.info;
      if (tensor.storage == Storage::kDelta) expected.dtype = "F32";
      const TensorInfo* found = file_.find(expected.name);
      if (found == nullptr || found->dtype != expected.dtype || found->shape != expected.shape)
        throw FileError(concat(at, ": the tensor of its dtype and shape is missing"));
      ++dense_tensors;
    }
    manifest_.tensors.push_back(std::move(tensor));
  }
  if (offset != manifest_.numel)
    fail(concat("its tensors have ", offset, " entries, its vector ", manifest_.numel));
  for (std::size_t i = 0; i < part_numel.size(); ++i)
    if (part_numel[i] != manifest_.parts[i].numel)
      fail(concat("part '", manifest_.parts[i].name, "' claims ", manifest_.parts[i].numel,
                  " entries, its tensors have ", part_numel[i]));
  if (file_.tensors().size() != dense_tensors + 3)
    fail("it holds tensors that its manifest does not name");

  if (const auto config = metadata.find("adapter_config"); config != metadata.end())
    manifest_.adapter_config = config->second;
  if (const auto source = metadata.find("source_metadata"); source != metadata.end()) {
    const Json values = parse_json(source->second, where, 2);
    if (!values.is_object()) fail("'source_metadata' must be an object");
    for (const auto& [key, text] : values.items()) {
      if (!text.is_string()) fail("'source_metadata' must hold strings");
      manifest_.source_metadata[key] = text.get<std::string>();
    }
  }
}

void PackedFile::read_blocks() {
  const auto blocks = static_cast<std::size_t>(blocks_in_directory());
  if (directory_.size() % detail::kDirectoryEntryBytes != 0 ||
      blocks != static_cast<std::size_t>(this->blocks()))
    fail(concat("its directory of ", directory_.size(), " bytes does not list ", this->blocks(),
                " blocks"));
  block_offsets_.reserve(blocks + 1);
  std::size_t next = 0;
  for (std::size_t i = 0; i < blocks; ++i) {
    block_offsets_.push_back(next);
    const std::size_t length = read_u32(directory_.data() + i * detail::kDirectoryEntryBytes);
    if (length < kBlockHeaderBytes || length > payload_.size() - next)
      fail(
          concat("block ", i, " claims ", length, " bytes, ", payload_.size() - next, " are left"));
    next += length;
  }
  block_offsets_.push_back(next);
  if (next != payload_.size())
    fail(concat("its blocks have ", next, " bytes, ", payload_.size(), " are there"));
}

std::int64_t PackedFile::blocks_in_directory() const {
  return static_cast<std::int64_t>(directory_.size() / detail::kDirectoryEntryBytes);
}

std::span<const std::byte> PackedFile::block_bytes(std::int64_t block) const {
  check(block >= 0 && block < blocks(), "block ", block, " of ", blocks());
  const auto i = static_cast<std::size_t>(block);
  const auto bytes = payload_.subspan(block_offsets_[i], block_offsets_[i + 1] - block_offsets_[i]);
  if (crc32c(bytes) != read_u32(directory_.data() + i * detail::kDirectoryEntryBytes + 4))
    fail(concat("the checksum of block ", block, " does not match"));
  return bytes;
}

BlockMode PackedFile::block_mode(std::int64_t block) const {
  return static_cast<BlockMode>(block_bytes(block)[0]);
}

void PackedFile::decode_block(std::int64_t block, std::span<std::uint64_t> mask,
                              std::span<std::uint64_t> sign) const {
  std::vector<BlockRows> rows;
  if (row_layout_ && block_mode(block) == BlockMode::kContexts) row_layout_->rows_of(block, rows);
  try {
    peft::decode_block(block_bytes(block), block_entries(manifest_.numel, block), mask, sign, rows);
  } catch (const FrameError& error) {
    fail(concat("block ", block, ": ", error.what()));
  }
}

TernaryPlanes PackedFile::planes() const {
  TernaryPlanes planes(manifest_.numel);
  std::vector<std::uint64_t> scratch(2 * kBlockWords);
  for (std::int64_t block = 0; block < blocks(); ++block) {
    // Checked like any other, but not written: the planes are zero, and stay without memory.
    if (block_mode(block) == BlockMode::kEmpty) {
      const auto words = static_cast<std::size_t>(words_for(block_entries(manifest_.numel, block)));
      decode_block(block, std::span(scratch).first(words),
                   std::span(scratch).subspan(kBlockWords, words));
      continue;
    }
    const auto first = static_cast<std::size_t>(block) * kBlockWords;
    const auto words = static_cast<std::size_t>(words_for(block_entries(manifest_.numel, block)));
    decode_block(block, planes.mask().subspan(first, words), planes.sign().subspan(first, words));
  }
  if (count_nonzero(planes.view()) != manifest_.kept())
    fail(concat("its blocks hold ", count_nonzero(planes.view()),
                " set entries, its manifest says ", manifest_.kept()));
  return planes;
}

std::span<const std::byte> PackedFile::dense_bytes(std::size_t tensor) const {
  return file_.bytes(manifest_.tensors.at(tensor).info.name);
}

DeltaReader::DeltaReader(const PackedFile& file) : file_(file) {}

void DeltaReader::read(std::size_t tensor, std::int64_t begin, std::span<float> out) {
  const Manifest& manifest = file_.manifest();
  const PackedTensor& entry = manifest.tensors.at(tensor);
  check(entry.storage != Storage::kValue, "tensor '", entry.info.name, "' has no delta");
  check(begin >= 0 && static_cast<std::int64_t>(out.size()) <= entry.info.numel() - begin,
        "entries beyond tensor '", entry.info.name, "'");
  if (out.empty()) return;
  if (entry.storage == Storage::kDelta) {
    std::memcpy(out.data(), file_.dense_bytes(tensor).data() + 4 * begin, 4 * out.size());
    return;
  }
  const float scale = manifest.parts[entry.part].scale;
  std::int64_t at = entry.offset + begin;
  while (!out.empty()) {
    const std::int64_t block = at / kBlockEntries;
    if (block != block_) {
      const std::int64_t entries = block_entries(manifest.numel, block);
      if (window_.numel() != entries) window_ = TernaryPlanes(entries);
      block_ = -1;  // stays so if decoding throws
      file_.decode_block(block, window_.mask(), window_.sign());
      block_ = block;
    }
    const std::int64_t inside = at - block * kBlockEntries;
    const auto n = std::min(out.size(), static_cast<std::size_t>(window_.numel() - inside));
    expand(scale, 0.0f, window_.view(), inside, out.first(n));
    out = out.subspan(n);
    at += static_cast<std::int64_t>(n);
  }
}

}  // namespace thinwire::peft
