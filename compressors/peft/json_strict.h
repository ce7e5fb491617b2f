// Members of JSON objects, without silent conversions; common/json.h parses.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "thinwire/common/json.h"

namespace thinwire::peft::detail {

using Json = nlohmann::json;

// Member `key` of an object, of the type asked for; FileError, starting with `where`, otherwise.
const Json& member(const Json& object, const char* key, const std::string& where);
std::string string_member(const Json& object, const char* key, const std::string& where);
std::int64_t integer_member(const Json& object, const char* key, const std::string& where);
double number_member(const Json& object, const char* key, const std::string& where);

// A non-negative integer below 2^63.
std::int64_t as_size(const Json& value, const std::string& where);

}  // namespace thinwire::peft::detail
