#include "thinwire/common/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"

namespace thinwire {
namespace {

// Refuses before anything is built. parse() with a callback would do, but looks through all
// that an object holds each time one within it ends.
class StrictEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  StrictEvents(const std::string& source, int max_depth) : source_(source), max_depth_(max_depth) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override {
    enter();
    keys_.emplace_back();
    return true;
  }
  bool key(string_t& name) override {
    if (!keys_.back().insert(name).second)
      throw FileError(concat(source_, ": the field '", name, "' occurs twice in one object"));
    return true;
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return true;
  }
  bool start_array(std::size_t) override {
    enter();
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::json::exception& error) override {
    throw FileError(concat(source_, ": not valid JSON: ", error.what()));
  }

 private:
  void enter() {
    if (depth_++ >= max_depth_)
      throw FileError(concat(source_, ": JSON nests deeper than ", max_depth_));
  }

  const std::string& source_;
  int max_depth_, depth_ = 0;
  std::vector<std::unordered_set<std::string>> keys_;  // of the objects that are open
};

}  // namespace

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
  StrictEvents events(source, max_depth);
  nlohmann::json::sax_parse(text.begin(), text.end(), &events);
  try {
    return nlohmann::json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& error) {
    throw FileError(concat(source, ": not valid JSON: ", error.what()));
  }
}

}  // namespace thinwire
