// The text of the error that a call ends with.
#pragma once

#include <string>

#include "thinwire/common/error.h"

namespace thinwire::testing {

// What the ErrorType that `action` throws says, "no error" where it throws nothing. Other errors
// pass through.
template <typename ErrorType = InvalidArgument>
std::string error_of(const auto& action) {
  try {
    action();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace thinwire::testing
