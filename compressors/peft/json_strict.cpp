#include "thinwire/compressors/peft/json_strict.h"

#include <unordered_set>
#include <vector>

#include "thinwire/common/error.h"

namespace thinwire::peft::detail {
namespace {

// Refuses before anything is built. Json::parse() with a callback would do, but looks through all
// that an object holds each time one within it ends.
class StrictEvents : public nlohmann::json_sax<Json> {
 public:
  StrictEvents(const std::string& where, int max_depth) : where_(where), max_depth_(max_depth) {}

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
      throw FileError(concat(where_, ": key '", name, "' occurs twice"));
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
  bool parse_error(std::size_t, const std::string&, const Json::exception& error) override {
    throw FileError(concat(where_, ": not valid JSON: ", error.what()));
  }

 private:
  void enter() {
    if (depth_++ >= max_depth_)
      throw FileError(concat(where_, ": JSON nests deeper than ", max_depth_));
  }

  const std::string& where_;
  int max_depth_, depth_ = 0;
  std::vector<std::unordered_set<std::string>> keys_;  // of the objects that are open
};

}  // namespace

Json parse_json(std::string_view text, const std::string& where, int max_depth) {
  StrictEvents events(where, max_depth);
  Json::sax_parse(text.begin(), text.end(), &events);
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& error) {
    throw FileError(concat(where, ": not valid JSON: ", error.what()));
  }
}

const Json& member(const Json& object, const char* key, const std::string& where) {
  if (!object.is_object()) throw FileError(concat(where, ": expected a JSON object"));
  const auto found = object.find(key);
  if (found == object.end()) throw FileError(concat(where, ": '", key, "' is missing"));
  return *found;
}

std::string string_member(const Json& object, const char* key, const std::string& where) {
  const Json& value = member(object, key, where);
  if (!value.is_string()) throw FileError(concat(where, ": '", key, "' must be a string"));
  return value.get<std::string>();
}

std::int64_t integer_member(const Json& object, const char* key, const std::string& where) {
  return as_size(member(object, key, where), concat(where, ": '", key, "'"));
}

double number_member(const Json& object, const char* key, const std::string& where) {
  const Json& value = member(object, key, where);
  if (!value.is_number()) throw FileError(concat(where, ": '", key, "' must be a number"));
  return value.get<double>();
}

std::int64_t as_size(const Json& value, const std::string& where) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > INT64_MAX)
    throw FileError(concat(where, " must be an integer in [0, 2^63), got ", value.dump()));
  return value.get<std::int64_t>();
}

}  // namespace thinwire::peft::detail
