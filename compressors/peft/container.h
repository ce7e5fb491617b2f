// The ComPEFT file: a valid safetensors file that holds a ternary delta, entropy-coded, and all
// that is needed to rebuild what it was made from. The byte format is docs/peft-format.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "thinwire/compressors/peft/bitstream.h"
#include "thinwire/compressors/peft/safetensors.h"

namespace thinwire::peft {

namespace detail {
class RowLayout;
}

// How a tensor is kept.
enum class Storage {
  kTernary,  // as entries of the ternary vector: value = base + scale * trit
  kDelta,    // as a dense float32 delta: value = base + delta (results of a merge)
  kValue,    // as it is
};

struct PackedTensor {
  TensorInfo info;  // as in the source; unpacking restores name, dtype and shape
  Storage storage = Storage::kTernary;
  float base_constant = 0.0f;  // 0 (LoRA) or 1 (IA3); no meaning where the base is a file
  std::size_t part = 0;        // kTernary: index of the scale
  std::int64_t offset = 0;     // kTernary: first entry in the ternary vector
};

// Entries that share a threshold and a scale.
struct PackedPart {
  std::string name;
  float scale = 0.0f;
  std::int64_t numel = 0;
  std::int64_t kept = 0;
  double standard_deviation = 0;
  double relative_error = 0;  // |delta - ternary| / |delta|
};

struct Manifest {
  std::vector<PackedTensor> tensors;  // in order of the names
  std::vector<PackedPart> parts;
  std::int64_t numel = 0;  // of the ternary vector: the kTernary tensors one after the other
  std::string granularity = "global";
  std::string scale_rule = "mean";
  double density = 0;
  // What the delta is relative to: empty for constants, else fingerprint() of the base's file.
  std::string base_fingerprint;
  // id of the file whose result this one continues; empty for the first of a chain.
  std::string parent;
  // Set by write_packed(): a hash of content and manifest.
  std::string id;
  // adapter_config.json, byte for byte, and the source file's own metadata.
  std::optional<std::string> adapter_config;
  SafetensorsFile::Metadata source_metadata;

  std::int64_t kept() const;
};

// Told (done, total) in entries while something long runs.
using Progress = std::function<void(std::int64_t, std::int64_t)>;

// Bytes of the tensors that are not ternary, by index into Manifest::tensors; valid until the next
// call. Every tensor is asked for twice, in order.
using DenseSource = std::function<std::span<const std::byte>(std::size_t tensor)>;

// Writes a file by temporary file and rename; every block is encoded twice, first for its size, so
// that no more than one encoded block is in memory. Returns the id.
// Throws FileError as AtomicFile does.
std::string write_packed(const std::filesystem::path& path, Manifest manifest, PlanesView planes,
                         const DenseSource& dense, bool overwrite, const Progress& progress = {});

// The size of the file that write_packed() would write, without writing it.
std::uint64_t packed_bytes(const Manifest& manifest, PlanesView planes);

// An open file. Immutable and safe to read from several threads.
class PackedFile {
 public:
  enum class Check {
    kHeader,  // checksum of header and directory; blocks are checked as they are decoded
    kAll,     // every byte
  };
  // Throws FileError that names the file and what is wrong with it.
  explicit PackedFile(const std::filesystem::path& path, Check check = Check::kAll);
  // The content of a file that is in memory already; `name` stands for its path in messages.
  PackedFile(std::vector<std::byte> content, std::string name, Check check = Check::kAll);

  const std::filesystem::path& path() const { return file_.path(); }
  const Manifest& manifest() const { return manifest_; }
  std::int64_t blocks() const { return block_count(manifest_.numel); }
  BlockMode block_mode(std::int64_t block) const;
  // The encoded bytes of one block, its checksum verified.
  std::span<const std::byte> block_bytes(std::int64_t block) const;
  // All bytes of the file, and those of the encoded blocks.
  std::size_t file_bytes() const { return file_.file_bytes().size(); }
  std::size_t payload_bytes() const { return payload_.size(); }

  // Decodes one block into words_for(entries) words. Throws FileError.
  void decode_block(std::int64_t block, std::span<std::uint64_t> mask,
                    std::span<std::uint64_t> sign) const;
  // The whole ternary vector; FileError also where the number of set entries is not the manifest's.
  // Memory is taken for blocks that have set entries only.
  TernaryPlanes planes() const;
  // Bytes of a tensor that is not ternary.
  std::span<const std::byte> dense_bytes(std::size_t tensor) const;

 private:
  PackedFile(SafetensorsFile file, Check check);
  [[noreturn]] void fail(const std::string& what) const;
  void read_manifest();
  std::int64_t blocks_in_directory() const;
  void read_blocks();

  SafetensorsFile file_;
  Manifest manifest_;
  // Of a file that may have blocks coded by row and column; else null.
  std::shared_ptr<const detail::RowLayout> row_layout_;
  std::span<const std::byte> payload_;
  std::span<const std::byte> directory_;
  std::vector<std::size_t> block_offsets_;
};

// Reads a tensor's delta piece after piece in O(block) memory: keeps the block decoded last.
// Not thread-safe; the file must outlive it.
class DeltaReader {
 public:
  explicit DeltaReader(const PackedFile& file);

  // out[i] = delta of the tensor's entry begin + i in float32, scale applied. The tensor must not
  // be stored by value.
  void read(std::size_t tensor, std::int64_t begin, std::span<float> out);

 private:
  const PackedFile& file_;
  std::int64_t block_ = -1;
  TernaryPlanes window_;
};

// The manifest as JSON text, as it stands in the file's metadata (without adapter_config and
// source_metadata, which have keys of their own).
std::string manifest_json(const Manifest& manifest);

}  // namespace thinwire::peft
