#include "thinwire/common/spec.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

// Not std::isalpha and its like: what these take for a letter depends on the locale.
bool is_blank(char c) {
  return std::string_view(" \t\n\v\f\r").find(c) != std::string_view::npos;
}
bool starts_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool continues_word(char c) {
  return starts_name(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '+' || c == ':' ||
         c == '/';
}

// Recursive descent over one text; positions count from 0 and messages count from 1.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  std::vector<Spec> list() {
    std::vector<Spec> specs;
    do {
      specs.push_back(spec());
    } while (accept(';'));
    expect_end();
    return specs;
  }

  Spec single() {
    Spec result = spec();
    expect_end();
    return result;
  }

 private:
  // Deep enough for any policy, shallow enough that hostile input cannot exhaust the stack.
  static constexpr int kMaxDepth = 16;

  Spec spec() {
    if (++depth_ > kMaxDepth) fail("at most 16 nested specs");
    skip_blanks();
    Spec result;
    result.position = at_;
    result.source = text_;
    if (at_ == text_.size() || !starts_name(text_[at_])) fail("a name");
    result.name = word();
    if (accept('(') && !accept(')')) {
      do {
        result.arguments.push_back(argument());
      } while (accept(','));
      if (!accept(')')) fail("',' or ')'");
    }
    --depth_;
    return result;
  }

  Spec::Argument argument() {
    skip_blanks();
    Spec::Argument result;
    if (at_ == text_.size() || !continues_word(text_[at_])) fail("an argument");
    result.position = at_;
    std::string first = word();
    if (accept('=')) {
      result.key = std::move(first);
      skip_blanks();
      if (at_ == text_.size() || !continues_word(text_[at_])) {
        fail(concat("a value for '", result.key, "'"));
      }
      result.position = at_;
      first = word();
    }
    skip_blanks();
    if (at_ < text_.size() && text_[at_] == '(') {
      at_ = result.position;
      result.nested.push_back(spec());
      result.text = result.nested.front().str();
    } else {
      result.text = std::move(first);
    }
    return result;
  }

  std::string word() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && continues_word(text_[at_])) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }

  void skip_blanks() {
    while (at_ < text_.size() && is_blank(text_[at_])) ++at_;
  }

  bool accept(char c) {
    skip_blanks();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect_end() {
    skip_blanks();
    if (at_ != text_.size()) fail("the end");
  }

  [[noreturn]] void fail(const std::string& expected) const {
    const std::string found =
        at_ < text_.size() ? concat("'", text_[at_], "'") : std::string("the end");
    throw InvalidArgument(concat("bad spec '", text_, "': expected ", expected, " at position ",
                                 at_ + 1, ", found ", found));
  }

  std::string_view text_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substitution = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitution});
    }
  }
  return row.back();
}

}  // namespace

Spec Spec::parse(std::string_view text) {
  return Parser(text).single();
}
std::vector<Spec> Spec::parse_list(std::string_view text) {
  return Parser(text).list();
}

std::string Spec::str() const {
  std::string text = name;
  if (arguments.empty()) return text;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    text += i == 0 ? "(" : ", ";
    if (!arguments[i].key.empty()) text += arguments[i].key + "=";
    text += arguments[i].text;
  }
  return text + ")";
}

std::string nearest_name(std::string_view word, const std::vector<std::string>& known) {
  std::string best;
  std::size_t best_distance = static_cast<std::size_t>(-1);
  for (const auto& candidate : known) {
    const std::size_t distance = edit_distance(word, candidate);
    const std::size_t limit = std::max<std::size_t>(2, std::max(word.size(), candidate.size()) / 3);
    if (distance <= limit && distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

const Spec::Argument* SpecReader::take(std::string_view key) {
  known_.emplace_back(key);
  const Spec::Argument* found = nullptr;
  for (std::size_t i = 0; i < spec_.arguments.size(); ++i) {
    const auto& argument = spec_.arguments[i];
    const bool named = argument.key == key;
    const bool next_positional = !found && argument.key.empty() && !used_[i];
    if (!named && !next_positional) continue;
    if (found && named) fail(argument, concat("'", key, "' only once"));
    if (found) continue;
    // A positional value belongs to this parameter only if the parameter is not also named.
    if (!named) {
      const bool named_later = std::any_of(spec_.arguments.begin(), spec_.arguments.end(),
                                           [&](const auto& other) { return other.key == key; });
      if (named_later) continue;
    }
    used_[i] = true;
    found = &argument;
  }
  return found;
}

void SpecReader::fail(const Spec::Argument& argument, const std::string& expected) const {
  throw InvalidArgument(concat("bad spec '", spec_.source, "': expected ", expected,
                               " at position ", argument.position + 1, ", found '", argument.text,
                               "'"));
}

std::int64_t SpecReader::integer(std::string_view key, std::int64_t fallback, std::int64_t minimum,
                                 std::int64_t maximum) {
  const auto* argument = take(key);
  if (!argument) return fallback;
  std::int64_t value = 0;
  const char* end = argument->text.data() + argument->text.size();
  const auto [stop, error] = std::from_chars(argument->text.data(), end, value);
  if (error != std::errc() || stop != end || value < minimum || value > maximum) {
    fail(*argument, concat("'", key, "' to be an integer from ", minimum, " to ", maximum));
  }
  return value;
}

double SpecReader::number(std::string_view key, double fallback, double minimum, double maximum,
                          bool minimum_excluded) {
  const auto* argument = take(key);
  if (!argument) return fallback;
  double value = 0;
  const char* end = argument->text.data() + argument->text.size();
  const auto [stop, error] = std::from_chars(argument->text.data(), end, value);
  const bool below = minimum_excluded ? value <= minimum : value < minimum;
  if (error != std::errc() || stop != end || !std::isfinite(value) || below || value > maximum) {
    fail(*argument, concat("'", key, "' to be a number in ", minimum_excluded ? "(" : "[", minimum,
                           ", ", maximum, "]"));
  }
  return value;
}

bool SpecReader::flag(std::string_view key, bool fallback) {
  static const std::vector<std::string_view> kWords = {"off", "on", "false", "true", "0", "1"};
  const auto* argument = take(key);
  if (!argument) return fallback;
  const auto found = std::find(kWords.begin(), kWords.end(), argument->text);
  if (found == kWords.end()) fail(*argument, concat("'", key, "' to be on or off"));
  return (found - kWords.begin()) % 2 == 1;
}

std::size_t SpecReader::choice(std::string_view key, const std::vector<std::string_view>& choices,
                               std::size_t fallback) {
  const auto* argument = take(key);
  if (!argument) return fallback;
  const auto found = std::find(choices.begin(), choices.end(), argument->text);
  if (found == choices.end()) {
    const std::vector<std::string> words(choices.begin(), choices.end());
    const std::string near = nearest_name(argument->text, words);
    fail(*argument, concat("'", key, "' to be one of ", join(words),
                           near.empty() ? "" : concat(" (did you mean ", near, "?)")));
  }
  return static_cast<std::size_t>(found - choices.begin());
}

std::string SpecReader::text(std::string_view key, std::string_view fallback) {
  const auto* argument = take(key);
  return argument ? argument->text : std::string(fallback);
}

bool SpecReader::has(std::string_view key) const {
  return std::any_of(spec_.arguments.begin(), spec_.arguments.end(),
                     [&](const auto& argument) { return argument.key == key; });
}

void SpecReader::finish() const {
  for (std::size_t i = 0; i < spec_.arguments.size(); ++i) {
    if (used_[i]) continue;
    const auto& argument = spec_.arguments[i];
    const std::string near = nearest_name(argument.key, known_);
    throw InvalidArgument(concat(
        "bad spec '", spec_.source, "': ", spec_.name, " has no parameter ",
        argument.key.empty() ? concat("for the value '", argument.text, "'")
                             : concat("'", argument.key, "'"),
        " at position ", argument.position + 1, "; it has ", known_.empty() ? "none" : join(known_),
        near.empty() ? "" : concat(" (did you mean ", near, "?)")));
  }
}

}  // namespace thinwire
