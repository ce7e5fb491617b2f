#include "thinwire/compressors/peft/json_strict.h"

#include <set>
#include <vector>

#include "thinwire/common/error.h"

namespace thinwire::peft::detail {

Json parse_json(std::string_view text, const std::string& where, int max_depth) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check_event = [&](int depth, Json::parse_event_t event, Json& value) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (depth >= max_depth)
          throw FileError(concat(where, ": JSON nests deeper than ", max_depth));
        if (event == Json::parse_event_t::object_start) keys.emplace_back();
        break;
      case Json::parse_event_t::object_end:
        keys.pop_back();
        break;
      case Json::parse_event_t::key:
        if (!keys.back().insert(value.get<std::string>()).second)
          throw FileError(concat(where, ": key '", value.get<std::string>(), "' occurs twice"));
        break;
      default:
        break;
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check_event);
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
