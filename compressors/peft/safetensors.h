// Safetensors files: an 8-byte little-endian length, that many bytes of JSON, then the tensors.
//
// The reader is strict, so that a file which is accepted here is read the same way by everybody:
// the header has at most 100,000,000 bytes and begins with '{'; no key occurs twice; tensors are
// contiguous from 0 to the end of the file without hole or overlap; shape and dtype give exactly
// the bytes of the range; __metadata__ maps strings to strings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "thinwire/common/atomic_file.h"
#include "thinwire/common/dtype.h"
#include "thinwire/compressors/peft/content_hash.h"
#include "thinwire/compressors/view/tensor_view.h"

namespace thinwire::peft {

inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;

// Bytes of one element of a safetensors dtype (BOOL, U8, ..., F64, C64), nullopt for others.
std::optional<std::size_t> safetensors_element_bytes(std::string_view dtype);
// The dtype that codecs know for F32, F16, BF16 and F64, nullopt for others.
std::optional<DType> float_dtype(std::string_view dtype);

struct TensorInfo {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;

  std::int64_t numel() const;  // 1 for rank 0
  std::size_t bytes() const;
};

// A mapped file, or one in memory; tensors are spans into it, aligned to nothing. Immutable, safe
// to read from several threads.
class SafetensorsFile {
 public:
  using Metadata = std::map<std::string, std::string>;

  // Throws FileError that names the file and the rule it breaks.
  explicit SafetensorsFile(const std::filesystem::path& path);
  // The content of a file that is in memory already; `name` stands for its path in messages.
  SafetensorsFile(std::vector<std::byte> content, std::string name);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::filesystem::path& path() const { return path_; }
  const Metadata& metadata() const { return metadata_; }
  // In order of the names (byte by byte).
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  // Null where there is no such tensor.
  const TensorInfo* find(std::string_view name) const;
  // Throws FileError where there is no such tensor.
  std::span<const std::byte> bytes(std::string_view name) const;
  std::span<const std::byte> bytes(std::size_t index) const { return data_[index]; }
  // The whole file.
  std::span<const std::byte> file_bytes() const;

 private:
  struct Mapping;
  void parse(std::span<const std::byte> file);

  std::filesystem::path path_;
  std::unique_ptr<Mapping> mapping_;  // null where the file is in memory
  std::vector<std::byte> content_;
  Metadata metadata_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::span<const std::byte>> data_;
};

// Writes a file tensor after tensor, by temporary file and rename. Not thread-safe.
class SafetensorsWriter {
 public:
  // The tensors are laid out in the order given. Throws InvalidArgument for a name that occurs
  // twice or an unknown dtype, FileError like AtomicFile.
  SafetensorsWriter(const std::filesystem::path& path, const std::vector<TensorInfo>& tensors,
                    const SafetensorsFile::Metadata& metadata, bool overwrite);

  // Appends bytes of the tensors, in order; pieces of any size.
  void write(std::span<const std::byte> bytes);
  // Throws InternalError unless all bytes were written.
  void commit();

  // Length and ContentHash of all bytes so far, the header's included: of what was to be written,
  // whatever has become of it on its way to the disk.
  std::uint64_t file_bytes() const { return file_bytes_; }
  std::string hash() const { return hash_.hex(); }

 private:
  void put(std::span<const std::byte> bytes);

  AtomicFile file_;
  ContentHash hash_;
  std::uint64_t file_bytes_ = 0;
  std::uint64_t missing_ = 0;
};

// The header as it is written: length, JSON, spaces up to a multiple of 8.
std::string safetensors_header(const std::vector<TensorInfo>& tensors,
                               const SafetensorsFile::Metadata& metadata);

// XXH3-128 of names, dtypes, shapes and bytes of all tensors in order of the names, in hex: two
// files with equal tensors have equal fingerprints, whatever their layout and metadata.
std::string fingerprint(const SafetensorsFile& file);
// The same for tensors elsewhere, given in order of the names; `bytes(i)` are those of tensor i,
// valid until the next call.
std::string fingerprint(std::span<const TensorInfo> tensors,
                        const std::function<std::span<const std::byte>(std::size_t)>& bytes);

}  // namespace thinwire::peft
