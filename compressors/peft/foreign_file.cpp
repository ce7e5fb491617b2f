#include "thinwire/compressors/peft/foreign_file.h"

#include <algorithm>
#include <array>

namespace thinwire::peft {
namespace {

struct Signature {
  std::string_view bytes;  // in lower case
  std::string_view kind;
};

// The first eight bytes of a safetensors file are a length of at most 100,000,000, so that its
// fifth to eighth byte are zero; each of these begins otherwise, or is told apart by what follows.
constexpr std::array kSignatures = {
    Signature{"version https://git-lfs",
              "a Git LFS pointer: the content was not fetched (git lfs pull)"},
    Signature{"<!doctype", "an HTML page, as a server sends instead of a file it does not give"},
    Signature{"<html", "an HTML page, as a server sends instead of a file it does not give"},
    Signature{"<?xml", "an XML document, as a server sends instead of a file it does not give"},
    Signature{"pk\x03\x04",
              "a zip archive, as torch.save() writes; it holds a pickle, which can run "
              "code when it is read: save the tensors with safetensors"},
    Signature{"\x80\x02",
              "a pickle, which can run code when it is read: save the tensors with "
              "safetensors"},
    Signature{"\x1f\x8b", "compressed with gzip"},
    Signature{"gguf", "a GGUF file"},
    Signature{"\x89hdf", "an HDF5 file"},
};

}  // namespace

std::string_view foreign_kind(std::span<const std::byte> content) {
  const auto lower = [&](std::size_t i) {
    const char c = static_cast<char>(content[i]);
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  // A header is text in braces, whatever length comes first.
  if (content.size() > 8 && content[8] == std::byte{'{'}) return {};
  for (const auto& [bytes, kind] : kSignatures) {
    if (content.size() < bytes.size()) continue;
    bool same = true;
    for (std::size_t i = 0; i < bytes.size(); ++i) same = same && lower(i) == bytes[i];
    if (same) return kind;
  }
  if (std::ranges::all_of(content.first(std::min<std::size_t>(content.size(), 64)),
                          [](std::byte b) {
                            const auto c = static_cast<unsigned char>(b);
                            return (c >= 0x20 && c < 0x7F) || c == '\n' || c == '\r' || c == '\t';
                          }))
    return "a text file";
  return {};
}

}  // namespace thinwire::peft
