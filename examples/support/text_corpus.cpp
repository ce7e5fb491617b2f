#include "thinwire/examples/support/text_corpus.h"

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "thinwire/common/error.h"
#include "thinwire/common/philox.h"

namespace thinwire::examples {
namespace {

constexpr std::size_t kLeastBytes = 1000;
// "TEXT": keeps the draws apart from those of the library.
constexpr std::uint32_t kStage = 0x54455854;

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw FileError(concat(path.string(), ": ", std::strerror(errno)));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string print_bible() {
  const auto close = [](std::FILE* pipe) { pclose(pipe); };
  const std::unique_ptr<std::FILE, decltype(close)> pipe(
      popen("PATH=\"$PATH:/usr/games\" bible -f 'Gen1:1-Rev22:21' 2>/dev/null", "r"), close);
  std::string text;
  std::array<char, 1 << 16> block;
  while (pipe != nullptr) {
    const std::size_t count = std::fread(block.data(), 1, block.size(), pipe.get());
    if (count == 0) break;
    text.append(block.data(), count);
  }
  if (text.empty()) {
    throw FileError(
        "the program `bible` gave no text: install Debian's package bible-kjv, or name a text file "
        "with --data");
  }
  return text;
}

TextBatch batch_of(const torch::Tensor& text, const std::vector<std::int64_t>& starts,
                   std::int64_t context) {
  const auto count = static_cast<std::int64_t>(starts.size());
  torch::Tensor input = torch::empty({count, context}, torch::kLong);
  torch::Tensor target = torch::empty({count, context}, torch::kLong);
  const auto* bytes = text.const_data_ptr<std::uint8_t>();
  auto* in = input.mutable_data_ptr<std::int64_t>();
  auto* out = target.mutable_data_ptr<std::int64_t>();
  for (const std::int64_t start : starts) {
    in = std::copy(bytes + start, bytes + start + context, in);
    out = std::copy(bytes + start + 1, bytes + start + 1 + context, out);
  }
  return {input, target};
}

void check_length(const torch::Tensor& text, std::int64_t context) {
  check(text.numel() > context, "a text of ", text.numel(), " bytes has no sequence of ", context,
        " and its next byte");
}

}  // namespace

TextCorpus load_text(const std::filesystem::path& file) {
  const std::string text = file.empty() ? print_bible() : read_file(file);
  if (text.size() < kLeastBytes) {
    throw FileError(concat(file.string(), ": a text of at least ", kLeastBytes,
                           " bytes is needed, this one has ", text.size()));
  }
  const auto bytes = static_cast<std::int64_t>(text.size());
  torch::Tensor all = torch::empty({bytes}, torch::kUInt8);
  std::memcpy(all.mutable_data_ptr(), text.data(), text.size());
  const std::int64_t cut = bytes - bytes / 10;
  return {all.narrow(0, 0, cut), all.narrow(0, cut, bytes - cut)};
}

TextBatch sample_batch(const torch::Tensor& text, std::int64_t count, std::int64_t context,
                       std::uint64_t seed, std::uint64_t step, std::int64_t first) {
  check_length(text, context);
  const PhiloxStream stream = PhiloxStream::of({.seed = seed, .step = step, .stage = kStage});
  const auto choices = static_cast<std::uint64_t>(text.numel() - context);
  std::vector<std::int64_t> starts;
  for (std::int64_t i = first; i < first + count; ++i) {
    const std::uint64_t word = stream.word(static_cast<std::uint64_t>(i));
    starts.push_back(static_cast<std::int64_t>(word * choices >> 32));
  }
  return batch_of(text, starts, context);
}

TextBatch slice_batch(const torch::Tensor& text, std::int64_t count, std::int64_t context,
                      std::int64_t first, std::int64_t stride) {
  check_length(text, context);
  const std::int64_t pieces = (text.numel() - 1) / context;
  std::vector<std::int64_t> starts;
  for (std::int64_t i = 0; i < count; ++i) {
    starts.push_back((first + i * stride) % pieces * context);
  }
  return batch_of(text, starts, context);
}

}  // namespace thinwire::examples
