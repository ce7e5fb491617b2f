#include "thinwire/compressors/peft/safetensors.h"

#include <algorithm>
#include <array>
#include <boost/interprocess/file_mapping.hpp>
#include <boost/interprocess/mapped_region.hpp>
#include <cstring>
#include <set>

#include "thinwire/common/error.h"
#include "thinwire/common/shape.h"
#include "thinwire/compressors/peft/foreign_file.h"
#include "thinwire/compressors/peft/json_strict.h"

namespace thinwire::peft {
namespace {

namespace ipc = boost::interprocess;
using detail::Json;

struct ElementType {
  std::string_view name;
  std::size_t bytes;
};
constexpr std::array kElementTypes = {
    ElementType{"BOOL", 1},    ElementType{"U8", 1},      ElementType{"I8", 1},
    ElementType{"F8_E5M2", 1}, ElementType{"F8_E4M3", 1}, ElementType{"F8_E8M0", 1},
    ElementType{"I16", 2},     ElementType{"U16", 2},     ElementType{"F16", 2},
    ElementType{"BF16", 2},    ElementType{"I32", 4},     ElementType{"U32", 4},
    ElementType{"F32", 4},     ElementType{"I64", 8},     ElementType{"U64", 8},
    ElementType{"F64", 8},     ElementType{"C64", 8},
};

constexpr std::string_view kMetadataKey = "__metadata__";
// What is hashed is still in the cache when it is written.
constexpr std::size_t kWrittenAtOnce = std::size_t{1} << 18;

// Product of the shape times the element size, FileError where it passes 63 bits.
std::uint64_t checked_bytes(const TensorInfo& info, std::size_t element, const std::string& where) {
  std::uint64_t bytes = element;
  for (const std::int64_t extent : info.shape)
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes) ||
        bytes > INT64_MAX)
      throw FileError(concat(where, ": the shape overflows"));
  return bytes;
}

}  // namespace

std::optional<std::size_t> safetensors_element_bytes(std::string_view dtype) {
  for (const ElementType& type : kElementTypes)
    if (type.name == dtype) return type.bytes;
  return std::nullopt;
}

std::optional<DType> float_dtype(std::string_view dtype) {
  if (dtype == "F32") return DType::kFloat32;
  if (dtype == "F16") return DType::kFloat16;
  if (dtype == "BF16") return DType::kBFloat16;
  if (dtype == "F64") return DType::kFloat64;
  return std::nullopt;
}

std::int64_t TensorInfo::numel() const {
  return numel_of(shape);
}

std::size_t TensorInfo::bytes() const {
  return static_cast<std::size_t>(numel()) * safetensors_element_bytes(dtype).value();
}

struct SafetensorsFile::Mapping {
  explicit Mapping(const std::filesystem::path& path)
      : file(path.c_str(), ipc::read_only), region(file, ipc::read_only) {}
  ipc::file_mapping file;
  ipc::mapped_region region;
};

namespace {

void check_size(std::uintmax_t size, const std::string& where) {
  if (size < 10)
    throw FileError(concat(where, ": ", size, " bytes are too few for a safetensors file"));
}

}  // namespace

SafetensorsFile::SafetensorsFile(std::vector<std::byte> content, std::string name)
    : path_(std::move(name)), content_(std::move(content)) {
  check_size(content_.size(), path_.string());
  parse(content_);
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    throw FileError(concat(path.string(), " is not a file"));
  const auto size = std::filesystem::file_size(path, error);
  check_size(error ? 0 : size, path.string());
  try {
    mapping_ = std::make_unique<Mapping>(path);
  } catch (const ipc::interprocess_exception& failure) {
    throw FileError(concat("cannot read ", path.string(), ": ", failure.what()));
  }
  parse(file_bytes());
}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

std::span<const std::byte> SafetensorsFile::file_bytes() const {
  if (!mapping_) return content_;
  return {static_cast<const std::byte*>(mapping_->region.get_address()),
          mapping_->region.get_size()};
}

void SafetensorsFile::parse(std::span<const std::byte> file) {
  const std::string where = path_.string();
  std::uint64_t length;
  std::memcpy(&length, file.data(), 8);
  if (const std::string_view kind = foreign_kind(file); !kind.empty())
    throw FileError(concat(where, " is no safetensors file but ", kind));
  if (length > kMaxSafetensorsHeader || length > file.size() - 8)
    throw FileError(concat(where, ": the header claims ", length, " bytes; the file has ",
                           file.size() - 8, " after its length, and at most ",
                           kMaxSafetensorsHeader, " are allowed"));
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, length);
  if (!text.starts_with('{')) throw FileError(concat(where, ": the header must begin with '{'"));
  const Json header = parse_json(text, where, 4);
  if (!header.is_object()) throw FileError(concat(where, ": the header must be an object"));

  const std::span<const std::byte> data = file.subspan(8 + length);
  struct Range {
    std::int64_t begin, end;
    std::size_t index;
  };
  std::vector<Range> ranges;
  for (const auto& [name, entry] : header.items()) {  // in order of the keys
    if (name == kMetadataKey) {
      if (!entry.is_object()) throw FileError(concat(where, ": __metadata__ must be an object"));
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          throw FileError(concat(where, ": metadata '", key, "' must be a string"));
        metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    const std::string at = concat(where, ": tensor '", name, "'");
    TensorInfo info{name, detail::string_member(entry, "dtype", at), {}};
    const auto element = safetensors_element_bytes(info.dtype);
    if (!element) throw FileError(concat(at, ": unknown dtype '", info.dtype, "'"));
    const Json& shape = detail::member(entry, "shape", at);
    if (!shape.is_array()) throw FileError(concat(at, ": 'shape' must be an array"));
    for (const Json& extent : shape) info.shape.push_back(detail::as_size(extent, at));
    const Json& offsets = detail::member(entry, "data_offsets", at);
    if (!offsets.is_array() || offsets.size() != 2)
      throw FileError(concat(at, ": 'data_offsets' must be [begin, end]"));
    if (entry.size() != 3)
      throw FileError(concat(at, ": only dtype, shape and data_offsets are allowed"));
    const std::int64_t begin = detail::as_size(offsets[0], at);
    const std::int64_t end = detail::as_size(offsets[1], at);
    const std::uint64_t bytes = checked_bytes(info, *element, at);
    if (begin > end || static_cast<std::uint64_t>(end) > data.size() ||
        static_cast<std::uint64_t>(end - begin) != bytes)
      throw FileError(concat(at, ": data_offsets [", begin, ", ", end, ") do not hold the ", bytes,
                             " bytes of its shape within ", data.size(), " bytes of data"));
    ranges.push_back({begin, end, tensors_.size()});
    tensors_.push_back(std::move(info));
    data_.push_back(data.subspan(static_cast<std::size_t>(begin), bytes));
  }

  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  std::int64_t next = 0;
  for (const Range& range : ranges) {
    if (range.begin != next)
      throw FileError(concat(where, ": tensor '", tensors_[range.index].name, "' begins at ",
                             range.begin, ", but the tensors before it end at ", next));
    next = range.end;
  }
  if (static_cast<std::uint64_t>(next) != data.size())
    throw FileError(concat(where, ": the tensors end at ", next, ", the file at ", data.size()));
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto at =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const TensorInfo& t, std::string_view n) { return t.name < n; });
  return at != tensors_.end() && at->name == name ? &*at : nullptr;
}

std::span<const std::byte> SafetensorsFile::bytes(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) throw FileError(concat(path_.string(), ": no tensor '", name, "'"));
  return data_[static_cast<std::size_t>(info - tensors_.data())];
}

std::string safetensors_header(const std::vector<TensorInfo>& tensors,
                               const SafetensorsFile::Metadata& metadata) {
  // Put together by hand: nlohmann's ordered objects take linear time to look for a key.
  std::string text = "{";
  const auto put = [&](const std::string& key, const nlohmann::ordered_json& value) {
    text += concat(text.size() > 1 ? "," : "", nlohmann::json(key).dump(), ":", value.dump());
  };
  if (!metadata.empty()) put(std::string(kMetadataKey), metadata);
  std::set<std::string_view> names{kMetadataKey};
  std::uint64_t offset = 0;
  for (const TensorInfo& info : tensors) {
    check(names.insert(info.name).second, "tensor name '", info.name, "' occurs twice");
    check(safetensors_element_bytes(info.dtype).has_value(), "tensor '", info.name,
          "': unknown dtype '", info.dtype, "'");
    const std::uint64_t end = offset + info.bytes();
    put(info.name, {{"dtype", info.dtype}, {"shape", info.shape}, {"data_offsets", {offset, end}}});
    offset = end;
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  check(text.size() <= kMaxSafetensorsHeader, "the header would have ", text.size(),
        " bytes, at most ", kMaxSafetensorsHeader, " are allowed");
  const std::uint64_t length = text.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + text;
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     const std::vector<TensorInfo>& tensors,
                                     const SafetensorsFile::Metadata& metadata, bool overwrite)
    : file_(path, overwrite) {
  const std::string header = safetensors_header(tensors, metadata);
  put(std::as_bytes(std::span(header)));
  for (const TensorInfo& info : tensors) missing_ += info.bytes();
}

void SafetensorsWriter::put(std::span<const std::byte> bytes) {
  file_bytes_ += bytes.size();
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kWrittenAtOnce));
    hash_.update(piece);
    file_.write(piece);
    bytes = bytes.subspan(piece.size());
  }
}

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  THINWIRE_ASSERT(bytes.size() <= missing_);
  put(bytes);
  missing_ -= bytes.size();
}

void SafetensorsWriter::commit() {
  THINWIRE_ASSERT(missing_ == 0);
  file_.commit();
}

std::string fingerprint(const SafetensorsFile& file) {
  return fingerprint(file.tensors(), [&](std::size_t i) { return file.bytes(i); });
}

std::string fingerprint(std::span<const TensorInfo> tensors,
                        const std::function<std::span<const std::byte>(std::size_t)>& bytes) {
  ContentHash hash;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo& info = tensors[i];
    std::string label = concat(info.name, '\0', info.dtype, '\0');
    for (const std::int64_t extent : info.shape) label += std::to_string(extent) + ',';
    hash.update(label + '\0');
    hash.update(bytes(i));
  }
  return hash.hex();
}

}  // namespace thinwire::peft
