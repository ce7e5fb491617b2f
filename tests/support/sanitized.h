// Whether the tests run under a sanitizer, which keeps freed memory and memory of its own: then a
// process's size says nothing.
#pragma once

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define THINWIRE_SANITIZED 1
#else
#define THINWIRE_SANITIZED 0
#endif
