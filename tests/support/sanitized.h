// Whether the tests run under a sanitizer, which keeps freed memory and memory of its own: then a
// process's size says nothing.
#pragma once

namespace thinwire::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace thinwire::testing
