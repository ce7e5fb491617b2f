#include "thinwire/compressors/peft/json_strict.h"

#include "thinwire/common/error.h"

namespace thinwire::peft::detail {
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
