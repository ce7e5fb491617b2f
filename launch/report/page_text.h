// page.html and page.js, compiled in: page_text.cpp.in makes them a source.
#pragma once

#include <string_view>

namespace thinwire::launch {

extern const std::string_view kPageText;
extern const std::string_view kPageScript;

}  // namespace thinwire::launch
