// `thinwire codecs`: the table of codecs, with the bytes that each makes of a tensor.
#include <CLI/CLI.hpp>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numbers>

#include "thinwire/common/error.h"
#include "thinwire/common/table.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/launch/cli/commands.h"

namespace thinwire::launch {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kSide = 1024;
constexpr std::int64_t kNumel = kSide * kSide;

struct Row {
  std::string name;  // in the table
  std::string spec;  // canonical, with every parameter
  CodecTraits traits = {};
  std::size_t bytes = 0;
  std::string missing = {};  // why the codec cannot be made without parameters; then no bytes
};

// Standard normal values, by Box and Muller's method: much like a gradient, and the same each time.
std::vector<float> normal_values() {
  const auto stream = PhiloxStream::of({.seed = 1});
  std::vector<float> values(kNumel);
  for (std::size_t i = 0; i < values.size(); i += 2) {
    const double radius = std::sqrt(-2 * std::log1p(-stream.uniform(i)));
    const double angle = 2 * std::numbers::pi * stream.uniform(i + 1);
    values[i] = static_cast<float>(radius * std::cos(angle));
    values[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
  return values;
}

Row measure(const Spec& spec, std::span<const float> values) {
  const CodecPtr codec = make_codec(spec);
  const std::array<std::int64_t, 2> shape = {kSide, kSide};
  ConstTensorView input = view_of(values);
  input.shape = shape;
  std::vector<std::byte> output(codec->max_compressed_bytes(kNumel, DType::kFloat32));
  return {spec.name, codec->spec(), codec->traits(),
          codec->compress(input, RandomKey{.seed = 1}, output)};
}

// Every codec with its default parameters. One that has none for something is listed all the same.
std::vector<Row> measure_all(std::span<const float> values) {
  std::vector<Row> rows;
  for (const auto& entry : codec_table()) {
    const std::string name(entry.name);
    try {
      rows.push_back(measure(Spec::parse(name), values));
    } catch (const InvalidArgument& error) {
      rows.push_back({.name = name, .spec = name, .missing = error.what()});
    }
  }
  return rows;
}

std::string words_of(const CodecTraits& traits) {
  std::string words;
  const auto add = [&](bool has, const char* word) {
    if (has) words += (words.empty() ? "" : " ") + std::string(word);
  };
  add(traits.lossless, "lossless");
  add(traits.summable, "summable");
  add(traits.unbiased, "unbiased");
  add(traits.fixed_size, "fixed-size");
  add(traits.exact_on_constants, "exact-on-constants");
  add(traits.needs_error_feedback, "error-feedback");
  return words.empty() ? "-" : words;
}

std::string ratio_of(const Row& row) {
  return fixed_text(4.0 * kNumel / static_cast<double>(row.bytes), 2) + "x";
}

void print(const std::vector<Row>& rows, std::ostream& out) {
  Table table({1, 2});
  table.add({"codec", "bytes", "ratio", "traits"});
  for (const auto& row : rows) {
    if (!row.missing.empty()) {
      table.add({row.spec, "-", "-", row.missing});
      continue;
    }
    table.add({row.spec, with_commas(static_cast<long long>(row.bytes)), ratio_of(row),
               words_of(row.traits)});
  }
  table.print(out, "");
  out << "\nBytes of one payload of 1024 x 1024 standard normal float32 values ("
      << with_commas(4 * kNumel) << " bytes),\nwithout the frame around it.\n\nParameters\n";
  Table parameters;
  std::string previous;
  for (const auto& row : rows) {
    if (row.name == previous) continue;
    previous = row.name;
    const CodecEntry& entry = codec_entry(row.name);
    parameters.add({row.name, entry.parameters.empty() ? "-" : std::string(entry.parameters)});
    parameters.add({"", std::string(entry.summary)});
  }
  parameters.print(out);
}

Json json_of(const std::vector<Row>& rows) {
  Json codecs = Json::array();
  for (const auto& row : rows) {
    const CodecEntry& entry = codec_entry(row.name);
    Json codec = {{"name", row.name},
                  {"spec", row.spec},
                  {"parameters", entry.parameters},
                  {"summary", entry.summary}};
    if (row.missing.empty()) {
      codec["bytes"] = row.bytes;
      codec["traits"] = {{"lossless", row.traits.lossless},
                         {"summable", row.traits.summable},
                         {"unbiased", row.traits.unbiased},
                         {"fixed_size", row.traits.fixed_size},
                         {"exact_on_constants", row.traits.exact_on_constants},
                         {"needs_error_feedback", row.traits.needs_error_feedback}};
    } else {
      codec["missing"] = row.missing;
    }
    codecs.push_back(codec);
  }
  return {{"numel", kNumel}, {"dtype", name_of(DType::kFloat32)}, {"codecs", codecs}};
}

struct Options {
  std::vector<std::string> specs;
  bool json = false;
};

void run(const Options& options) {
  const auto values = normal_values();
  std::vector<Row> rows;
  for (const auto& list : options.specs) {
    for (const auto& spec : Spec::parse_list(list)) rows.push_back(measure(spec, values));
  }
  if (options.specs.empty()) rows = measure_all(values);
  if (options.json) {
    std::cout << json_of(rows).dump(2) << "\n";
  } else {
    print(rows, std::cout);
  }
}

}  // namespace

void add_codecs_command(CLI::App& app) {
  auto* command = app.add_subcommand(
      "codecs", "List the codecs with their parameters, traits and compressed bytes");
  const auto options = std::make_shared<Options>();
  command->add_option("specs", options->specs,
                      "Codecs to show, such as 'quantize(bits=2)' or 'topk(density=0.01);onebit'; "
                      "default: every codec with its default parameters");
  command->add_flag("--json", options->json, "Print one JSON object");
  command->callback([options] { run(*options); });
}

}  // namespace thinwire::launch
