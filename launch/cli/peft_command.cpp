// `thinwire peft`: pack adapters and weight deltas into ComPEFT files, and work on such files.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "thinwire/common/error.h"
#include "thinwire/common/printable.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/common/table.h"
#include "thinwire/compressors/peft/merge.h"
#include "thinwire/compressors/peft/pack.h"
#include "thinwire/launch/cli/commands.h"

namespace thinwire::launch {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// Whether JSON on the terminal has names out of files in ASCII, where nothing is obeyed.
constexpr bool kAscii = true;

constexpr std::array kModes = {peft::BlockMode::kEmpty,  peft::BlockMode::kRice,
                               peft::BlockMode::kRans,   peft::BlockMode::kMaskSigns,
                               peft::BlockMode::kPlanes, peft::BlockMode::kContexts};

// One line on the terminal that is written over, for work of more than half a second.
class ProgressLine {
 public:
  explicit ProgressLine(std::string label) : label_(std::move(label)) {}
  ~ProgressLine() {
    if (shown_) std::cerr << '\r' << std::string(label_.size() + 8, ' ') << '\r' << std::flush;
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  peft::Progress callback() {
    if (::isatty(STDERR_FILENO) == 0) return {};
    return [this](std::int64_t done, std::int64_t total) { show(done, total); };
  }

 private:
  void show(std::int64_t done, std::int64_t total) {
    const auto now = Clock::now();
    if (now < next_ || total <= 0) return;
    next_ = now + std::chrono::milliseconds(200);
    shown_ = true;
    std::cerr << '\r' << label_ << ' ' << 100 * done / total << " %  " << std::flush;
  }

  std::string label_;
  Clock::time_point next_ = Clock::now() + std::chrono::milliseconds(500);
  bool shown_ = false;
};

std::string number(double value, const char* format = "%.4g") {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

std::string count(std::uint64_t value) {
  return with_commas(static_cast<long long>(value));
}

std::string shape_of(const peft::TensorInfo& info) {
  std::string text = "[";
  for (const std::int64_t extent : info.shape)
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

// What the file stands for, in the dtypes of its source.
std::uint64_t dense_bytes(const peft::Manifest& manifest) {
  std::uint64_t sum = 0;
  for (const auto& tensor : manifest.tensors) sum += tensor.info.bytes();
  return sum;
}

std::string ratio(std::uint64_t dense, std::uint64_t packed) {
  return number(static_cast<double>(dense) / static_cast<double>(packed), "%.1f") + "x";
}

// Open files and pointers to them, as the library takes them.
struct Files {
  explicit Files(const std::vector<std::string>& paths) {
    for (const auto& path : paths) pointers.push_back(&opened.emplace_back(path));
  }
  std::deque<peft::PackedFile> opened;
  std::vector<const peft::PackedFile*> pointers;
};

struct PackArguments {
  std::string source, out, base, parent, scale = "mean", granularity;
  bool base_one = false;
  peft::PackOptions options;
  std::uint64_t target_bytes = 0;
  double target_error = 0;
};

peft::DeltaSource open_source(const PackArguments& arguments) {
  if (fs::is_directory(arguments.source)) {
    check(arguments.base.empty() && !arguments.base_one,
          "--base and --base-one are for safetensors files; the base of an adapter is known from ",
          peft::kAdapterConfigName);
    return peft::open_adapter_dir(arguments.source);
  }
  if (!arguments.base.empty()) return peft::open_pair(arguments.source, arguments.base);
  return peft::open_tensors(arguments.source, arguments.base_one ? 1.0f : 0.0f);
}

void pack(const PackArguments& arguments) {
  peft::PackOptions options = arguments.options;
  options.scale = peft::ScaleRule::parse(arguments.scale);
  if (!arguments.granularity.empty())
    options.granularity = peft::parse_granularity(arguments.granularity);
  if (!arguments.parent.empty())
    options.parent_id = peft::PackedFile(arguments.parent).manifest().id;
  const peft::DeltaSource source = open_source(arguments);
  peft::PackResult result;
  {
    ProgressLine line("packing");
    result = peft::pack(source, arguments.out, options, line.callback());
  }
  std::uint64_t dense = 0;
  for (const auto& tensor : source.tensors) dense += tensor.info.bytes();
  for (const auto& warning : result.warnings)
    std::cerr << "thinwire: warning: " << printable(warning) << "\n";
  std::cout << printable(arguments.out) << ": " << count(result.file_bytes) << " bytes ("
            << ratio(dense, result.file_bytes) << " smaller), kept " << with_commas(result.kept)
            << " of " << with_commas(result.numel) << " entries, density " << number(result.density)
            << ", relative error " << number(result.relative_error) << "\n";
}

// Blocks of every mode, and a full decode on the way: throws where a block is damaged.
std::array<std::int64_t, kModes.size()> decode_all(const peft::PackedFile& file,
                                                   const peft::Progress& progress) {
  std::array<std::int64_t, kModes.size()> modes{};
  std::int64_t kept = 0;
  for (std::int64_t block = 0; block < file.blocks(); ++block) {
    const std::int64_t entries = peft::block_entries(file.manifest().numel, block);
    peft::TernaryPlanes planes(entries);
    file.decode_block(block, planes.mask(), planes.sign());
    kept += peft::count_nonzero(planes.view());
    ++modes[static_cast<std::size_t>(file.block_mode(block))];
    if (progress) progress(block + 1, file.blocks());
  }
  if (kept != file.manifest().kept())
    throw FileError(concat(file.path().string(), ": its blocks hold ", kept,
                           " set entries, its manifest says ", file.manifest().kept()));
  return modes;
}

Json json_of(const peft::PackedFile& file, const std::array<std::int64_t, kModes.size()>& modes) {
  Json json = Json::parse(peft::manifest_json(file.manifest()));
  json["file_bytes"] = file.file_bytes();
  json["payload_bytes"] = file.payload_bytes();
  json["dense_bytes"] = dense_bytes(file.manifest());
  for (const auto mode : kModes)
    json["blocks"][peft::name_of(mode)] = modes[static_cast<std::size_t>(mode)];
  return json;
}

void print(const peft::PackedFile& file, const std::array<std::int64_t, kModes.size()>& modes) {
  const peft::Manifest& manifest = file.manifest();
  const auto or_none = [](const std::string& text) {
    return text.empty() ? std::string("none") : text;
  };
  std::string blocks;
  for (const auto mode : kModes)
    if (const auto n = modes[static_cast<std::size_t>(mode)]; n > 0)
      blocks += concat(blocks.empty() ? "" : ", ", n, " ", peft::name_of(mode));
  Table head;
  head.add({"file", file.path().string()});
  head.add({"id", manifest.id});
  head.add({"parent", or_none(manifest.parent)});
  head.add({"base", manifest.base_fingerprint.empty() ? "constants" : manifest.base_fingerprint});
  head.add({"bytes", concat(count(file.file_bytes()), ", ",
                            ratio(dense_bytes(manifest), file.file_bytes()), " smaller")});
  head.add(
      {"entries", concat(with_commas(manifest.numel), ", ", with_commas(manifest.kept()), " set")});
  if (manifest.numel > 0)
    head.add({"payload", concat(count(file.payload_bytes()), " bytes, ",
                                number(8.0 * static_cast<double>(file.payload_bytes()) /
                                       static_cast<double>(manifest.numel)),
                                " bits an entry")});
  head.add({"packed with", concat("density ", number(manifest.density), ", scale ",
                                  manifest.scale_rule, ", granularity ", manifest.granularity)});
  head.add({"blocks", or_none(blocks)});
  head.print(std::cout, "");

  std::cout << "\nParts\n";
  Table parts({1, 2, 3, 4});
  parts.add({"part", "entries", "set", "scale", "error"});
  for (const auto& part : manifest.parts)
    parts.add({part.name, with_commas(part.numel), with_commas(part.kept), number(part.scale),
               number(part.relative_error)});
  parts.print(std::cout);
  std::cout << "\nTensors\n";
  Table tensors;
  tensors.add({"tensor", "dtype", "shape", "storage", "part"});
  for (const auto& tensor : manifest.tensors) {
    static constexpr std::array kStorage = {"ternary", "delta", "value"};
    tensors.add(
        {tensor.info.name, tensor.info.dtype, shape_of(tensor.info),
         kStorage[static_cast<std::size_t>(tensor.storage)],
         tensor.storage == peft::Storage::kTernary ? manifest.parts[tensor.part].name : "-"});
  }
  tensors.print(std::cout);
}

void inspect(const std::string& path, bool json) {
  const peft::PackedFile file(path);
  ProgressLine line("reading");
  const auto modes = decode_all(file, line.callback());
  if (json)
    std::cout << json_of(file, modes).dump(2, ' ', kAscii) << "\n";
  else
    print(file, modes);
}

void verify(const std::vector<std::string>& paths, const std::string& base) {
  const std::string found = base.empty() ? "" : fingerprint(peft::SafetensorsFile(base));
  for (const auto& path : paths) {
    const peft::PackedFile file(path);
    {
      ProgressLine line("verifying");
      decode_all(file, line.callback());
    }
    if (!base.empty() && file.manifest().base_fingerprint != found)
      throw FileError(concat("wrong base: ", base, " has the fingerprint ", found, ", ", path,
                             " was packed against '", file.manifest().base_fingerprint, "'"));
    std::cout << printable(path) << ": good, id " << printable(file.manifest().id) << "\n";
  }
}

void similarity(const std::vector<std::string>& paths, bool json) {
  const Files files(paths);
  const auto cosines = peft::cosine_matrix(files.pointers);
  const std::size_t n = paths.size();
  if (json) {
    Json rows = Json::array();
    for (std::size_t a = 0; a < n; ++a)
      rows.push_back(std::vector<double>(cosines.begin() + static_cast<std::ptrdiff_t>(a * n),
                                         cosines.begin() + static_cast<std::ptrdiff_t>(a * n + n)));
    std::cout << Json{{"files", paths}, {"cosines", rows}}.dump(2, ' ', kAscii) << "\n";
    return;
  }
  std::vector<std::size_t> right(n);
  for (std::size_t a = 0; a < n; ++a) right[a] = a + 1;
  Table table(right);
  std::vector<std::string> header{"cosine"};
  for (std::size_t a = 0; a < n; ++a) header.push_back(concat("#", a + 1));
  table.add(header);
  for (std::size_t a = 0; a < n; ++a) {
    std::vector<std::string> row{concat("#", a + 1, " ", paths[a])};
    for (std::size_t b = 0; b < n; ++b) row.push_back(number(cosines[a * n + b], "%.4f"));
    table.add(row);
  }
  table.print(std::cout, "");
}

struct Arguments {
  std::vector<std::string> files;
  std::vector<float> weights;
  std::string out, base, method;
  bool force = false, json = false;
};

void add_out(CLI::App* command, std::string& out, bool& force, const char* what) {
  command->add_option("-o,--output", out, what)->required();
  command->add_flag("--force", force, "Overwrite files that exist");
}

void add_pack(CLI::App* parent) {
  auto* command = parent->add_subcommand(
      "pack", "Pack a PEFT directory, or safetensors weights and their base, into one file");
  const auto a = std::make_shared<PackArguments>();
  command->add_option("source", a->source, "PEFT directory, or tuned weights (.safetensors)")
      ->required();
  add_out(command, a->out, a->options.overwrite, "The file to write");
  auto* base = command->add_option("--base", a->base, "Weights before tuning (.safetensors)");
  command->add_flag("--base-one", a->base_one, "The base is 1 everywhere (IA3's vectors)")
      ->excludes(base);
  command->add_option("--parent", a->parent, "Packed file whose result --base is, for a chain")
      ->needs(base);
  auto* density =
      command->add_option("--density", a->options.density, "Share of entries to keep, in (0, 1]")
          ->capture_default_str();
  command
      ->add_option("--scale", a->scale,
                   "Magnitude of every kept entry: mean (of the kept ones) or std:ALPHA (ALPHA "
                   "standard deviations of all entries)")
      ->capture_default_str();
  command->add_option("--granularity", a->granularity,
                      "What shares a threshold and a scale: global, tensor, or group (LoRA's A "
                      "factors, its B factors); default: group for adapters of several factors, "
                      "else global");
  auto* bytes = command->add_option("--target-bytes", a->target_bytes,
                                    "Choose the density for a file of at most so many bytes; "
                                    "100kB and 1MiB are understood");
  // AsSizeValue would take -1 for the largest number there is.
  bytes
      ->check([](const std::string& text) {
        return text.find('-') == std::string::npos ? "" : "must be positive, got " + text;
      })
      ->transform(CLI::AsSizeValue(true))
      ->excludes(density);
  auto* error = command->add_option("--target-error", a->target_error,
                                    "Choose the least density with |delta - packed| / |delta| of "
                                    "at most this, in (0, 1)");
  error->excludes(density)->excludes(bytes);
  command->callback([a, bytes, error] {
    if (bytes->count() > 0) a->options.target_bytes = a->target_bytes;
    if (error->count() > 0) a->options.target_error = a->target_error;
    pack(*a);
  });
}

}  // namespace

void add_peft_command(CLI::App& app) {
  auto* peft = app.add_subcommand("peft", "Pack, unpack, compare and merge adapters (ComPEFT)");
  peft->require_subcommand(1);
  add_pack(peft);
  const auto a = std::make_shared<Arguments>();
  const auto add = [&](const char* name, const char* text) {
    return peft->add_subcommand(name, text);
  };

  auto* unpack = add("unpack", "Write the directory that a file was packed from");
  unpack->add_option("file", a->files, "Packed file")->required()->expected(1);
  add_out(unpack, a->out, a->force, "The directory to write");
  unpack->callback([a] {
    const peft::PackedFile file(a->files[0]);
    ProgressLine line("unpacking");
    peft::unpack_to_dir(file, a->out, a->force, line.callback());
  });

  auto* show = add("inspect", "Say what a packed file holds");
  show->add_option("file", a->files, "Packed file")->required()->expected(1);
  show->add_flag("--json", a->json, "Print one JSON object");
  show->callback([a] { inspect(a->files[0], a->json); });

  auto* prove = add("verify", "Check every byte of packed files");
  prove->add_option("files", a->files, "Packed files")->required();
  prove->add_option("--base", a->base, "Also check that they were packed against these weights");
  prove->callback([a] { verify(a->files, a->base); });

  auto* merge = add("merge", "Merge packed experts into one packed file");
  merge->add_option("files", a->files, "Packed files")->required();
  merge->add_option("--method", a->method, "ties, majority, average or task-arithmetic")
      ->required();
  merge->add_option("--weights", a->weights, "A factor for each file, such as 0.5,1.5; default 1")
      ->delimiter(',')
      ->allow_extra_args(false);
  add_out(merge, a->out, a->force, "The file to write");
  merge->callback([a] {
    const auto method = peft::parse_merge_method(a->method);
    const Files files(a->files);
    ProgressLine line("merging");
    peft::merge_packed(method, files.pointers, a->weights, a->out, a->force, line.callback());
  });

  auto* cosine = add("similarity", "Print the cosine of every pair of packed experts");
  cosine->add_option("files", a->files, "Packed files")->required();
  cosine->add_flag("--json", a->json, "Print one JSON object");
  cosine->callback([a] { similarity(a->files, a->json); });

  auto* apply = add("apply", "Add packed deltas to the weights that they were packed against");
  apply->add_option("files", a->files, "Packed file, or a chain of them, first one first")
      ->required();
  apply->add_option("--base", a->base, "The weights (.safetensors)")->required();
  add_out(apply, a->out, a->force, "The file to write");
  apply->callback([a] {
    const Files files(a->files);
    ProgressLine line("applying");
    peft::apply_packed(a->base, files.pointers, a->out, a->force, line.callback());
  });
}

}  // namespace thinwire::launch
