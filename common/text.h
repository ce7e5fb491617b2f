// Values as text: the same in every locale, since the texts travel between ranks, into files and
// into hashes, and a program may have set its own with std::locale::global().
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>
#include <string_view>
#include <type_traits>

namespace thinwire {
namespace detail {

void append_integer(std::string& text, std::int64_t value);
void append_unsigned(std::string& text, std::uint64_t value);
void append_real(std::string& text, double value);
// What `put` writes into a stream of the classic locale.
void append_streamed(std::string& text, const std::function<void(std::ostream&)>& put);

template <typename Value>
void append(std::string& text, const Value& value) {
  if constexpr (std::same_as<Value, char>) {
    text += value;
  } else if constexpr (std::same_as<Value, bool> || std::unsigned_integral<Value>) {
    append_unsigned(text, value);
  } else if constexpr (std::integral<Value>) {
    append_integer(text, value);
  } else if constexpr (std::floating_point<Value>) {
    append_real(text, static_cast<double>(value));
  } else if constexpr (std::is_convertible_v<const Value&, std::string_view>) {
    text += std::string_view(value);
  } else {
    append_streamed(text, [&](std::ostream& out) { out << value; });
  }
}

}  // namespace detail

// Joins values: concat("expected ", 3, " got ", n). Floating point has six digits, as a stream's; a
// flag is 0 or 1. Types of other libraries are written by their operator<<.
template <typename... Values>
std::string concat(const Values&... values) {
  std::string text;
  (detail::append(text, values), ...);
  return text;
}

// Shortest text that parses back to the same number.
std::string number_text(double value);

// With so many digits after the point; with so many that count, without trailing zeros.
std::string fixed_text(double value, int digits);
std::string rounded_text(double value, int digits);

}  // namespace thinwire
