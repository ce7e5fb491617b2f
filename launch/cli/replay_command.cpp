// `thinwire replay`: recorded gradients averaged with codecs to choose from.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/launch/cli/commands.h"
#include "thinwire/launch/cli/replay/replay.h"

namespace thinwire::launch {
namespace {

using Json = nlohmann::ordered_json;

struct ReplayArguments {
  std::string file, json;
  std::vector<std::string> codecs;
  ReplayOptions options;
};

Json json_of(const ReplayRow& row) {
  Json layers = Json::array();
  for (const ReplayedLayer& layer : row.layers) {
    layers.push_back({{"name", layer.name},
                      {"numel", layer.numel},
                      {"spec", layer.spec},
                      {"rel_error", layer.error.relative},
                      {"sum_rel_error", layer.error.of_the_sums}});
  }
  return {{"spec", row.spec},
          {"strategy", row.strategy},
          {"bits_up", row.bits_up},
          {"bits_down", row.bits_down},
          {"rel_error", row.error.relative},
          {"sum_rel_error", row.error.of_the_sums},
          {"seconds_per_element", row.seconds_per_element},
          {"layers", layers}};
}

// The specs of a list, as they are written.
std::vector<std::string> split(const std::string& list) {
  Spec::parse_list(list);  // throws for what is none
  std::vector<std::string> specs;
  std::istringstream in(list);
  for (std::string spec; std::getline(in, spec, ';');) {
    const auto begin = spec.find_first_not_of(" \t\n");
    if (begin == std::string::npos) continue;
    specs.push_back(spec.substr(begin, spec.find_last_not_of(" \t\n") - begin + 1));
  }
  return specs;
}

void print(const ReplayRow& row) {
  std::printf("%-36s %8.3f %8.3f %10.4f %10.4f %10.2f\n", row.spec.c_str(), row.bits_up,
              row.bits_down, row.error.relative, row.error.of_the_sums,
              1e9 * row.seconds_per_element);
}

void run(const ReplayArguments& arguments) {
  const Recording recording(arguments.file);
  std::vector<std::string> specs;
  for (const std::string& list : arguments.codecs) {
    for (std::string& spec : split(list)) specs.push_back(std::move(spec));
  }
  std::printf("# %lld steps of %d ranks, %zu layers, %lld elements\n",
              static_cast<long long>(recording.steps()), recording.world(),
              recording.layers().size(), static_cast<long long>(recording.numel()));
  std::printf("# %-34s %8s %8s %10s %10s %10s\n", "codec", "bits up", "down", "rel error",
              "of sums", "ns/element");
  Json rows = Json::array();
  for (const std::string& spec : specs) {
    const ReplayRow row = replay(recording, spec, arguments.options);
    print(row);
    std::fflush(stdout);
    rows.push_back(json_of(row));
  }
  if (arguments.json.empty()) return;
  std::ofstream out(arguments.json);
  out << Json{{"steps", recording.steps()},
              {"ranks", recording.world()},
              {"numel", recording.numel()},
              {"rows", rows}}
             .dump(1)
      << "\n";
  if (!out.flush()) throw FileError(concat("cannot write '", arguments.json, "'"));
}

}  // namespace

void add_replay_command(CLI::App& app) {
  const auto arguments = std::make_shared<ReplayArguments>();
  CLI::App* command =
      app.add_subcommand("replay", "Average recorded gradients with codecs to choose from");
  command->add_option("file", arguments->file, "What --record-gradients was given")->required();
  command
      ->add_option("--codec", arguments->codecs, "Specs, separated by ';'; may be given repeatedly")
      ->required();
  command
      ->add_option("--strategy", arguments->options.strategy,
                   "How compressed layers are averaged (auto, scatter_reduce, …)")
      ->capture_default_str();
  command
      ->add_option("--min-numel", arguments->options.min_numel,
                   "Layers of fewer elements go uncompressed")
      ->capture_default_str();
  command->add_flag("--compress-1d", arguments->options.compress_1d,
                    "Compress biases and the like, too");
  command
      ->add_option("--skip", arguments->options.skip,
                   "Steps at the beginning that are averaged but not counted")
      ->capture_default_str();
  command->add_option("--json", arguments->json, "File for the results");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace thinwire::launch
