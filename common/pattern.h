#pragma once

#include <string_view>

namespace thinwire {

// Whether `pattern` matches the whole of `name`; '*' matches any text, '?' one character.
bool matches_pattern(std::string_view pattern, std::string_view name);

}  // namespace thinwire
