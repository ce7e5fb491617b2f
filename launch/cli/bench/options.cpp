#include "thinwire/launch/cli/bench/options.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire::launch {
namespace {

template <typename Value>
Value parse_number(const std::string& text, Value minimum, Value maximum) {
  Value value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  check(error == std::errc() && end == text.data() + text.size() && value >= minimum &&
            value <= maximum,
        "expected a number from ", minimum, " to ", maximum, ", got '", text, "'");
  return value;
}

// CLI11 would name only the rule that was broken; this names the flag and the value.
template <typename Reader>
void add_flag(CLI::App& command, const std::string& names, const std::string& meaning,
              const std::string& value, Reader read) {
  const std::string name = names.substr(names.rfind("--"));
  const auto set = [name, read](const std::string& text) {
    try {
      read(text);
    } catch (const InvalidArgument& error) {
      throw CLI::ValidationError(name, error.what());
    }
  };
  // A flag that is given again replaces the earlier one, so that scripts have defaults.
  command.add_option_function<std::string>(names, set, meaning)
      ->type_name(value)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

}  // namespace

std::int64_t parse_size(const std::string& text) {
  double factor = 1;
  std::string digits = text;
  if (!text.empty()) {
    constexpr std::string_view kSuffixes = "KMGT";
    const auto at = kSuffixes.find(static_cast<char>(std::toupper(text.back())));
    if (at != std::string_view::npos) {
      factor = std::pow(1024, at + 1);
      digits.pop_back();
    }
  }
  double value = 0;
  const char* last = digits.data() + digits.size();
  const auto [end, error] = std::from_chars(digits.data(), last, value, std::chars_format::fixed);
  const double bytes = value * factor;
  check(error == std::errc() && end == last && bytes >= 4 && bytes <= 0x1p40,
        "expected a size from 4 bytes to 1T such as 4096, 64K, 32M or 1G, got '", text, "'");
  return static_cast<std::int64_t>(bytes);
}

std::vector<std::int64_t> BenchOptions::sizes() const {
  const std::int64_t first = min_bytes > 0 ? min_bytes : kDefaultBytes;
  const std::int64_t last = max_bytes > 0 ? max_bytes : std::max(first, kDefaultBytes);
  thinwire::check(first <= last, "--minbytes ", first, " is above --maxbytes ", last);
  std::vector<std::int64_t> sizes;
  for (auto bytes = static_cast<double>(first); bytes <= static_cast<double>(last);
       bytes *= step_factor) {
    sizes.push_back(static_cast<std::int64_t>(bytes) / 4 * 4);
  }
  return sizes;
}

void add_bench_flags(CLI::App& command, BenchOptions& options) {
  BenchOptions* const o = &options;
  add_flag(command, "-b,--minbytes", "Smallest size of the uncompressed tensor (default 32M)",
           "SIZE", [o](const std::string& text) { o->min_bytes = parse_size(text); });
  add_flag(command, "-e,--maxbytes", "Largest size (default 32M)", "SIZE",
           [o](const std::string& text) { o->max_bytes = parse_size(text); });
  add_flag(command, "-f,--stepfactor", "Factor between sizes (default 2)", "FACTOR",
           [o](const std::string& text) { o->step_factor = parse_number(text, 1.1, 1e6); });
  add_flag(command, "-n,--iters", "Timed runs of each row (default 20)", "COUNT",
           [o](const std::string& text) { o->iterations = parse_number(text, 1, 1000000); });
  add_flag(command, "-w,--warmup_iters", "Runs before them (default 5)", "COUNT",
           [o](const std::string& text) { o->warmup = parse_number(text, 0, 1000000); });
  add_flag(command, "-c,--check",
           "Runs of each row whose result is checked against the exact one; 0: none (default 1)",
           "COUNT", [o](const std::string& text) { o->check = parse_number(text, 0, 1000000); });
  add_flag(command, "--codec", "Codecs to measure after the uncompressed row, 'topk(density=0.01)'",
           "SPEC[;SPEC...]", [o](const std::string& text) {
             o->codecs.clear();
             for (const Spec& spec : Spec::parse_list(text)) {
               if (spec.name == "none") continue;
               o->codecs.push_back(spec);
             }
           });
  command.add_option("--json", options.json, "Write all rows to a file")->type_name("FILE");
}

void add_group_flags(CLI::App& command, BenchOptions& options) {
  command.add_option("--backend", options.backend, "auto, gloo or mpi (default auto)")
      ->type_name("NAME");
}

}  // namespace thinwire::launch
