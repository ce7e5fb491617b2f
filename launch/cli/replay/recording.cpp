#include "thinwire/launch/cli/replay/recording.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <set>
#include <string_view>

#include "thinwire/common/error.h"

namespace thinwire::launch {
namespace {

struct Key {
  std::int64_t step = 0;
  int rank = 0;
  std::string_view layer;
};

template <typename Number>
bool take_number(std::string_view& text, Number& number) {
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const auto length = static_cast<std::size_t>(stop - text.data());
  if (error != std::errc{} || number < 0 || length >= text.size() || *stop != '/') return false;
  text.remove_prefix(length + 1);
  return true;
}

Key key_of(const std::filesystem::path& path, const peft::TensorInfo& tensor) {
  std::string_view rest = tensor.name;
  Key key;
  const bool sound = take_number(rest, key.step) && take_number(rest, key.rank) && !rest.empty();
  if (!sound || tensor.dtype != "F32") {
    throw FileError(concat("'", path.string(), "' is no recording: it has a tensor '", tensor.name,
                           "' of ", tensor.dtype, ", expected STEP/RANK/LAYER of F32"));
  }
  key.layer = rest;
  return key;
}

// PATH.RANK of every rank, whatever their number, in order.
std::vector<std::filesystem::path> files_of_ranks(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const std::string prefix = path.filename().string() + ".";
  std::map<int, std::filesystem::path> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix)) continue;
    int rank = 0;
    const char* const end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, rank);
    if (error == std::errc{} && stop == end && rank >= 0) found.emplace(rank, entry.path());
  }
  std::vector<std::filesystem::path> files;
  for (auto& [rank, file] : found) {
    if (rank != std::ssize(files))
      throw FileError(concat("there is '", file.string(), "' but no '", path.string(), ".",
                             files.size(), "': the files of all ranks must be there"));
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace

Recording::Recording(const std::filesystem::path& path) {
  if (std::filesystem::is_regular_file(path)) {
    files_.emplace_back(path);
  } else {
    for (const std::filesystem::path& of_rank : files_of_ranks(path)) files_.emplace_back(of_rank);
  }
  if (files_.empty()) {
    throw FileError(concat("there is neither '", path.string(), "' nor '", path.string(),
                           ".0': record with --record-gradients ", path.string()));
  }
  std::set<std::int64_t> steps;
  std::string job;  // its number of ranks, where the files say so
  std::set<std::string, std::less<>> seen;
  for (const peft::SafetensorsFile& file : files_) {
    const auto ranks = file.metadata().find("ranks");
    if (ranks != file.metadata().end()) {
      if (!job.empty() && job != ranks->second) {
        throw FileError(concat("'", file.path().string(), "' was recorded by a job of ",
                               ranks->second, " ranks, others by one of ", job,
                               ": remove what an earlier job left"));
      }
      job = ranks->second;
    }
    for (const peft::TensorInfo& tensor : file.tensors()) {
      const Key key = key_of(file.path(), tensor);
      steps.insert(key.step);
      world_ = std::max(world_, key.rank + 1);
      if (seen.insert(std::string(key.layer)).second) {
        layers_.push_back({std::string(key.layer), tensor.shape, tensor.numel()});
        numel_ += tensor.numel();
      }
    }
  }
  steps_.assign(steps.begin(), steps.end());
  if (steps_.empty()) throw FileError(concat("'", path.string(), "' holds no gradients"));
  if (!job.empty() && job != std::to_string(world_)) {
    throw FileError(concat("'", path.string(), "' was recorded by ", job, " ranks, of which ",
                           world_, " are here"));
  }
  for (const std::int64_t step : steps_) {
    for (int rank = 0; rank < world_; ++rank) {
      for (const RecordedLayer& layer : layers_) {
        const std::string name = concat(step, "/", rank, "/", layer.name);
        if (bytes(name).size() != static_cast<std::size_t>(layer.numel) * sizeof(float)) {
          throw FileError(concat("'", path.string(), "' is not whole: '", name,
                                 "' is missing or has another size than elsewhere"));
        }
      }
    }
  }
}

std::span<const std::byte> Recording::bytes(const std::string& name) const {
  for (const peft::SafetensorsFile& file : files_) {
    if (file.find(name)) return file.bytes(name);
  }
  return {};
}

void Recording::read(std::int64_t step, int rank, std::span<float> into) const {
  std::size_t at = 0;
  for (const RecordedLayer& layer : layers_) {
    const auto data =
        bytes(concat(steps_[static_cast<std::size_t>(step)], "/", rank, "/", layer.name));
    std::memcpy(into.data() + at, data.data(), data.size());
    at += static_cast<std::size_t>(layer.numel);
  }
}

}  // namespace thinwire::launch
