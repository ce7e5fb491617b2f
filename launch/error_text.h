// What the errors of a job that is starting say.
#pragma once

#include <exception>
#include <string>

#include <c10/util/Exception.h>

namespace thinwire::launch {

// The operation that a CommError names.
inline constexpr const char* kJoining = "joining the job";

// The message without torch's stack trace.
inline std::string error_text(const std::exception& error) {
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  const std::string text = of_torch ? of_torch->what_without_backtrace() : error.what();
  return text.substr(0, text.find('\n'));
}

}  // namespace thinwire::launch
