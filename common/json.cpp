#include "thinwire/common/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"

namespace thinwire {

void JsonPlace::fail(const std::string& what) const {
  throw FileError(concat(source_, ": ", place_.empty() ? "" : place_ + ": ", what));
}

void JsonPlace::expect_fields(std::initializer_list<std::string_view> fields) const {
  if (!value_.is_object()) fail(concat("expected an object, found ", value_.type_name()));
  for (const auto& [key, ignored] : value_.items()) {
    if (std::find(fields.begin(), fields.end(), key) != fields.end()) continue;
    const std::string near = nearest_name(key, {fields.begin(), fields.end()});
    fail(concat("unknown field '", key, "'",
                near.empty() ? "" : concat(" (did you mean '", near, "'?)")));
  }
}

bool JsonPlace::has(const std::string& field) const {
  return value_.contains(field);
}

JsonPlace JsonPlace::at(const std::string& field) const {
  if (!value_.is_object()) fail(concat("expected an object, found ", value_.type_name()));
  if (!value_.contains(field)) fail(concat("field '", field, "' is missing"));
  return {value_.at(field), source_, place_.empty() ? field : place_ + "." + field};
}

std::size_t JsonPlace::size() const {
  if (!value_.is_array()) fail(concat("expected an array, found ", value_.type_name()));
  return value_.size();
}

JsonPlace JsonPlace::at(std::size_t index) const {
  return {value_.at(index), source_, concat(place_, "[", index, "]")};
}

std::string JsonPlace::text() const {
  if (!value_.is_string()) fail(concat("expected a text, found ", value_.type_name()));
  return value_.get<std::string>();
}

bool JsonPlace::flag() const {
  if (!value_.is_boolean()) fail(concat("expected true or false, found ", value_.type_name()));
  return value_.get<bool>();
}

double JsonPlace::number() const {
  if (!value_.is_number()) fail(concat("expected a number, found ", value_.type_name()));
  const double number = value_.get<double>();
  if (!std::isfinite(number) || number < 0) {
    fail(concat("expected a finite number that is not negative, found ", number));
  }
  return number;
}

std::uint64_t JsonPlace::whole() const {
  if (!value_.is_number_unsigned()) {
    fail(concat("expected a whole number that is not negative, found ",
                value_.is_number() ? value_.dump() : value_.type_name()));
  }
  return value_.get<std::uint64_t>();
}

nlohmann::json parse_json(std::string_view text, const std::string& source, int max_depth) {
  using nlohmann::json;
  using Event = json::parse_event_t;
  // The parser itself would keep the last of repeated fields silently, and go as deep as the text.
  std::vector<std::set<std::string>> open;
  const auto watch = [&](int depth, Event event, json& parsed) {
    if ((event == Event::object_start || event == Event::array_start) && depth >= max_depth) {
      throw FileError(concat(source, ": JSON nests deeper than ", max_depth));
    }
    if (event == Event::object_start) open.emplace_back();
    if (event == Event::object_end) open.pop_back();
    if (event == Event::key && !open.back().insert(parsed.get<std::string>()).second) {
      throw FileError(concat(source, ": the field '", parsed.get<std::string>(),
                             "' occurs twice in one object"));
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::exception& error) {
    throw FileError(concat(source, ": not valid JSON: ", error.what()));
  }
}

}  // namespace thinwire
