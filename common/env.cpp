#include "thinwire/common/env.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

// See Note [Variables that must agree].
constexpr std::array<std::string_view, 2> kMustAgree = {"THINWIRE_COMPRESSION",
                                                        "THINWIRE_CHECK_REPLICAS"};

std::optional<std::string> process_variable(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value ? std::optional<std::string>(value) : std::nullopt;
}

template <typename Number>
std::optional<Number> parse_number(const std::string& text) {
  Number value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

}  // namespace

// Reads one variable a call and keeps what it saw for variables(). An empty value counts as unset:
// `THINWIRE_BACKEND= ./program` is how a shell takes a variable back.
struct Env::Reader {
  explicit Reader(const Lookup& lookup_function) : lookup(lookup_function) {}

  std::string text(const std::string& name, const std::string& fallback,
                   const std::string& description) {
    const auto value = lookup(name);
    const bool is_set = value && !value->empty();
    variables.push_back({name, is_set ? *value : fallback, description, is_set, false});
    return variables.back().value;
  }

  std::string choice(const std::string& name, const std::vector<std::string>& words,
                     const std::string& fallback, const std::string& description) {
    const std::string value = text(name, fallback, description);
    if (std::find(words.begin(), words.end(), value) == words.end()) {
      std::string list = words.front();
      for (std::size_t i = 1; i < words.size(); ++i) {
        list += (i + 1 == words.size() ? " or " : ", ") + words[i];
      }
      refuse(name, value, list);
    }
    return value;
  }

  std::chrono::milliseconds seconds(const std::string& name, const std::string& fallback,
                                    const std::string& description) {
    constexpr double kMost = 30.0 * 24 * 3600;
    const std::string value = text(name, fallback, description);
    const auto number = parse_number<double>(value);
    // A millisecond is the unit of the clocks that wait for it; NaN fails both comparisons.
    if (!number || !(*number >= 0.001 && *number <= kMost)) {
      refuse(name, value, "a number of seconds from 0.001 to 2592000");
    }
    return std::chrono::milliseconds(std::llround(*number * 1000));
  }

  int count(const std::string& name, int fallback, const std::string& description) {
    const std::string value = text(name, std::to_string(fallback), description);
    const auto number = parse_number<int>(value);
    if (!number || *number < 0) refuse(name, value, "a whole number, 0 or more");
    return *number;
  }

  bool flag(const std::string& name, const std::string& description) {
    return choice(name, {"0", "1"}, "0", description) == "1";
  }

  [[noreturn]] static void refuse(const std::string& name, const std::string& value,
                                  const std::string& expected) {
    throw InvalidArgument(
        concat("the environment variable ", name, "='", value, "' must be ", expected));
  }

  const Lookup& lookup;
  std::vector<Variable> variables;
};

Env::Env(const Lookup& lookup) : Env(Reader(lookup)) {}

Env::Env(Reader read)
    : log_level(read.choice("THINWIRE_LOG_LEVEL",
                            {"trace", "debug", "info", "warn", "error", "off"}, "info",
                            "least level of the log lines on standard error: trace, debug, info, "
                            "warn, error or off")),
      compression(read.text("THINWIRE_COMPRESSION", "",
                            "compression spec where the program gives none; empty: uncompressed")),
      backend(read.choice("THINWIRE_BACKEND", {"auto", "mpi", "gloo", "nccl"}, "auto",
                          "auto, mpi, gloo or nccl, where the program gives none")),
      timeout(read.seconds("THINWIRE_TIMEOUT", "300",
                           "seconds after which a collective fails, where the program gives none")),
      check_replicas_every(
          read.count("THINWIRE_CHECK_REPLICAS", 0,
                     "compare averaged gradients and weights of all ranks by checksum "
                     "every so many steps; 0: never")),
      gloo_interface(read.text("THINWIRE_GLOO_INTERFACE", "",
                               "network interface for Gloo; empty: GLOO_SOCKET_IFNAME, then the "
                               "address of the host's name")),
      data_dir(read.text("THINWIRE_DATA", "",
                         "folder of data sets; empty: where Debian's packages put them")),
      link_model(read.text("THINWIRE_LINK_MODEL", "",
                           "file that `thinwire link` wrote, where the program gives none; empty: "
                           "the network was not measured")),
      simd(read.text("THINWIRE_SIMD", "",
                     "the only SIMD target to use, by Highway's name (AVX3, AVX2, SSE4, ...); "
                     "empty: the best that the processor has")),
      postmortem(read.text("THINWIRE_POSTMORTEM", "",
                           "folder where a rank whose collective fails writes what it was doing, "
                           "for `thinwire doctor --postmortem`")),
      store(
          read.text("THINWIRE_STORE", "",
                    "HOST:PORT of the store that `thinwire store` serves, in place of one in rank "
                    "0")),
      disable_cuda(
          read.flag("THINWIRE_DISABLE_CUDA", "1 keeps thinwire from loading its CUDA module")),
      variables_(std::move(read.variables)) {
  for (Variable& variable : variables_)
    variable.must_agree = std::ranges::find(kMustAgree, variable.name) != kMustAgree.end();
}

const Env& Env::get() {
  static const Env env(process_variable);
  return env;
}

std::vector<std::string> Env::unknown_variables() {
  constexpr std::string_view kPrefix = "THINWIRE_";
  const Env known([](const std::string&) { return std::nullopt; });
  std::vector<std::string> unknown;
  for (char** entry = environ; entry && *entry; ++entry) {
    const std::string_view text(*entry);
    const std::string name(text.substr(0, text.find('=')));
    if (!name.starts_with(kPrefix)) continue;
    const bool is_known = std::any_of(known.variables_.begin(), known.variables_.end(),
                                      [&](const Variable& v) { return v.name == name; });
    if (!is_known) unknown.push_back(name);
  }
  std::sort(unknown.begin(), unknown.end());
  return unknown;
}

}  // namespace thinwire
