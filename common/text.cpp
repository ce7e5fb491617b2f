#include "thinwire/common/text.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <iterator>
#include <locale>
#include <sstream>

namespace thinwire {
namespace detail {

void append_integer(std::string& text, std::int64_t value) {
  const fmt::format_int digits(value);
  text.append(digits.data(), digits.size());
}

void append_unsigned(std::string& text, std::uint64_t value) {
  const fmt::format_int digits(value);
  text.append(digits.data(), digits.size());
}

void append_real(std::string& text, double value) {
  fmt::format_to(std::back_inserter(text), "{:g}", value);
}

void append_streamed(std::string& text, const std::function<void(std::ostream&)>& put) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  put(out);
  text += out.view();
}

}  // namespace detail

std::string number_text(double value) {
  std::array<char, 32> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  return {text.data(), end};
}

std::string fixed_text(double value, int digits) {
  return fmt::format("{:.{}f}", value, digits);
}

std::string rounded_text(double value, int digits) {
  return fmt::format("{:.{}g}", value, digits);
}

}  // namespace thinwire
