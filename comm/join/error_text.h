// What the errors of other libraries say to a user.
#pragma once

#include <exception>
#include <string>

#include <c10/util/Exception.h>

namespace thinwire::comm {

// The message of `error`; of an error of torch the first line, without its stack trace.
inline std::string error_text(const std::exception& error) {
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  if (of_torch == nullptr) return error.what();
  const std::string text = of_torch->what_without_backtrace();
  return text.substr(0, text.find('\n'));
}

}  // namespace thinwire::comm
