// JSON as strict readers need it: no field twice, little depth, no silent conversions, and errors
// that name the place.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace thinwire {

// A value and where it is, as `layers[3].candidates[1]`. It refers to a document that must outlive
// it. Every function throws FileError "<source>: <place>: <what is wrong>".
class JsonPlace {
 public:
  JsonPlace(const nlohmann::json& value, std::string source, std::string place = "")
      : value_(value), source_(std::move(source)), place_(std::move(place)) {}

  // Requires an object with no fields besides these.
  void expect_fields(std::initializer_list<std::string_view> fields) const;
  bool has(const std::string& field) const;
  JsonPlace at(const std::string& field) const;
  std::size_t size() const;  // of an array
  JsonPlace at(std::size_t index) const;

  std::string text() const;
  bool flag() const;
  double number() const;  // finite, not negative
  std::uint64_t whole() const;

  [[noreturn]] void fail(const std::string& what) const;

 private:
  const nlohmann::json& value_;
  std::string source_, place_;
};

// Parses a document. Throws FileError, starting with `source`, for text that is not JSON, repeats a
// field within one object or nests deeper than `max_depth`.
nlohmann::json parse_json(std::string_view text, const std::string& source, int max_depth = 64);

}  // namespace thinwire
