#include "thinwire/torch_ext/checkpoint/checkpoint_files.h"

#include <charconv>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "thinwire/common/atomic_file.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/content_hash.h"
#include "thinwire/compressors/peft/safetensors.h"

namespace thinwire::detail {
namespace {

constexpr int kManifestVersion = 1;
constexpr std::string_view kStepPrefix = "step-";

// The number in `text` between a prefix and the next text that is not a digit, which `rest`
// becomes.
std::optional<std::int64_t> number_after(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return std::nullopt;
  text.remove_prefix(prefix.size());
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || number < 0) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return number;
}

std::string hash_of(std::span<const std::byte> bytes) {
  peft::ContentHash hash;
  hash.update(bytes);
  return hash.hex();
}

// What is not there, any more, is empty: other ranks remove old steps meanwhile.
template <typename Visit>
void for_each_in(const std::filesystem::path& directory, const Visit& visit) {
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error))
    visit(entry->path());
  if (error && error != std::errc::no_such_file_or_directory)
    throw FileError(concat(directory.string(), ": ", error.message()));
}

std::string text_of_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw FileError(concat(path.string(), ": cannot be read"));
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace

std::filesystem::path CheckpointFile::folder() const {
  return directory / concat(kStepPrefix, step);
}
std::filesystem::path CheckpointFile::tensors() const {
  return folder() / concat("rank-", rank, "-of-", world, ".safetensors");
}
std::filesystem::path CheckpointFile::manifest() const {
  return folder() / concat("rank-", rank, "-of-", world, ".json");
}

void write_checkpoint_file(const CheckpointFile& file, const NamedTensors& tensors) {
  std::error_code error;
  std::filesystem::create_directories(file.folder(), error);
  if (error) throw FileError(concat(file.folder().string(), ": ", error.message()));
  // Written anew: until both are there again the step is not complete.
  std::filesystem::remove(file.manifest(), error);
  const FileContent content = save_tensors(tensors, file.tensors());
  nlohmann::ordered_json manifest;
  manifest["version"] = kManifestVersion;
  manifest["step"] = file.step;
  manifest["rank"] = file.rank;
  manifest["world"] = file.world;
  manifest["save"] = file.save;
  manifest["bytes"] = content.bytes;
  manifest["hash"] = content.hash;
  AtomicFile out(file.manifest(), /*overwrite=*/true);
  out.write(manifest.dump(1) + "\n");
  out.commit();
}

NamedTensors read_checkpoint_file(const CheckpointFile& file) {
  const std::string manifest_name = file.manifest().string();
  const auto manifest = nlohmann::json::parse(text_of_file(file.manifest()), nullptr, false);
  const auto whole = [&](const char* field) {
    if (!manifest.is_object() || !manifest.contains(field) || !manifest[field].is_number_integer())
      throw FileError(
          concat(manifest_name, ": no manifest of a checkpoint: it has no number '", field, "'"));
    return manifest[field].get<std::int64_t>();
  };
  if (whole("version") != kManifestVersion)
    throw FileError(concat(manifest_name, ": version ", whole("version"), ", this thinwire reads ",
                           kManifestVersion));
  if (whole("step") != file.step || whole("rank") != file.rank || whole("world") != file.world ||
      whole("save") != file.save)
    throw FileError(concat(manifest_name, ": is that of rank ", whole("rank"), " of ",
                           whole("world"), " at step ", whole("step"), ", save ", whole("save")));
  const peft::SafetensorsFile tensors(file.tensors());
  const auto bytes = static_cast<std::int64_t>(tensors.file_bytes().size());
  if (bytes != whole("bytes"))
    throw FileError(concat(file.tensors().string(), ": has ", bytes, " bytes, its manifest says ",
                           whole("bytes")));
  if (!manifest.contains("hash") || manifest["hash"] != hash_of(tensors.file_bytes()))
    throw FileError(
        concat(file.tensors().string(), ": is damaged: its hash is not its manifest's"));
  NamedTensors loaded;
  for (const auto& info : tensors.tensors())
    loaded.emplace(info.name, tensor_of(info, tensors.bytes(info.name)));
  return loaded;
}

CheckpointSteps checkpoint_steps(const std::filesystem::path& directory) {
  CheckpointSteps steps;
  for_each_in(directory, [&](const std::filesystem::path& folder) {
    const std::string folder_name = folder.filename().string();
    std::string_view left = folder_name;
    const auto step = number_after(left, kStepPrefix);
    if (!step || !left.empty() || !std::filesystem::is_directory(folder)) return;
    for_each_in(folder, [&](const std::filesystem::path& file) {
      const std::string name = file.filename().string();
      left = name;
      const auto rank = number_after(left, "rank-");
      const auto world = number_after(left, "-of-");
      if (!rank || !world || left != ".json" || *rank >= *world) return;
      // Not text_of_file(): another rank may have removed it since it was listed.
      std::ifstream in(file, std::ios::binary);
      const auto manifest = nlohmann::json::parse(in, nullptr, false);
      if (!manifest.is_object() || !manifest.contains("save") ||
          !manifest["save"].is_number_integer())
        return;
      steps[*step][static_cast<int>(*world)][static_cast<int>(*rank)] =
          manifest["save"].get<std::int64_t>();
    });
  });
  return steps;
}

}  // namespace thinwire::detail
