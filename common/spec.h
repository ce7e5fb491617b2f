// The one grammar in which codecs and policies are written, from C++, Python, the command line and
// THINWIRE_COMPRESSION:
//
//   spec  = name [ "(" [ arg { "," arg } ] ")" ]
//   arg   = [ key "=" ] value
//   value = spec | number | word
//   list  = spec { ";" spec }
//
// Examples: `quantize(bits=4, rounding=stochastic)`, `cast(bf16)`, `topk(density=0.01)`,
// `lgreco(family=quantize, reference=quantize(bits=4))`. Blanks between tokens do not matter, a
// name is [A-Za-z_][A-Za-z0-9_-]*. A value without a key is positional.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thinwire {

// A parsed spec. Value type; all functions are thread-safe.
struct Spec {
  struct Argument {
    std::string key;           // empty: positional
    std::string text;          // the value as written, normalised when it is a spec
    std::vector<Spec> nested;  // one element where the value is a spec with parentheses
    std::size_t position = 0;  // offset of the value in the source text
  };

  std::string name;
  std::vector<Argument> arguments;
  std::size_t position = 0;  // offset of the name in the source text
  std::string source;        // the whole text, for messages

  // Throws InvalidArgument with the text, the position and what was expected there.
  static Spec parse(std::string_view text);
  static std::vector<Spec> parse_list(std::string_view text);

  // The canonical text: no blanks but one after a comma, arguments in the order given.
  std::string str() const;
};

// Reads the arguments of one spec against the parameters that its name accepts. Each getter marks
// its key as known; finish() throws InvalidArgument for arguments that none asked for, naming the
// accepted keys and the nearest one. Positional arguments go to the getters in call order.
//
//   SpecReader read(spec);
//   const int bits = read.integer("bits", 4, 1, 8);
//   const auto norm = read.choice("norm", {"minmax", "linf", "l2"}, 0);
//   read.finish();
class SpecReader {
 public:
  explicit SpecReader(const Spec& spec) : spec_(spec), used_(spec.arguments.size(), false) {}

  // The value must lie in [minimum, maximum], else InvalidArgument.
  std::int64_t integer(std::string_view key, std::int64_t fallback, std::int64_t minimum,
                       std::int64_t maximum);
  // The value must be finite and lie in [minimum, maximum], or (minimum, maximum] where
  // `minimum_excluded`.
  double number(std::string_view key, double fallback, double minimum, double maximum,
                bool minimum_excluded = false);
  // Accepts on/off, true/false, 1/0.
  bool flag(std::string_view key, bool fallback);
  // Index of the chosen word in `choices`.
  std::size_t choice(std::string_view key, const std::vector<std::string_view>& choices,
                     std::size_t fallback);
  // The raw text (a nested spec in canonical form), or `fallback`.
  std::string text(std::string_view key, std::string_view fallback);
  bool has(std::string_view key) const;

  void finish() const;

 private:
  const Spec::Argument* take(std::string_view key);
  [[noreturn]] void fail(const Spec::Argument& argument, const std::string& expected) const;

  const Spec& spec_;
  std::vector<bool> used_;
  std::vector<std::string> known_;
};

// The member of `known` with the smallest edit distance to `word`, or "" where none is near
// (distance above a third of the longer word, at least 2).
std::string nearest_name(std::string_view word, const std::vector<std::string>& known);

}  // namespace thinwire
