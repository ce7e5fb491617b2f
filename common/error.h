// The errors that thinwire throws, and who has to act on each. docs/errors.md is the one-page list.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "thinwire/common/printable.h"
#include "thinwire/common/text.h"

namespace thinwire {

// Base of every exception of the library. What its text quotes of files and peers is escaped: it
// ends on a terminal.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& text) : std::runtime_error(printable(text, Lines::kKeep)) {}

 protected:
  struct OneLine {};
  Error(const std::string& text, OneLine) : std::runtime_error(printable(text, Lines::kEscape)) {}
};

// The caller passed something that cannot work: an unknown spec, a wrong shape, a bad option.
// The message holds the offending value and what would be right.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

// A file is missing, cannot be written, or its content is not what its format says.
class FileError : public Error {
 public:
  explicit FileError(const std::string& text) : Error(text, OneLine()) {}
};

// Bytes that claim to be a thinwire payload are not: damaged, truncated, of another codec, of
// another step. Nothing of them was decoded.
class FrameError : public Error {
 public:
  explicit FrameError(const std::string& text) : Error(text, OneLine()) {}
};

// A peer or the network failed. `rank` is the peer at fault, or -1 where it is not known.
class CommError : public Error {
 public:
  CommError(int rank, std::string operation, std::uint64_t sequence, const std::string& reason)
      : Error(concat(operation, " #", sequence, " failed",
                     rank >= 0 ? concat(", rank ", rank, " is at fault") : std::string(), ": ",
                     reason)),
        rank_(rank),
        operation_(std::move(operation)),
        sequence_(sequence) {}

  int rank() const noexcept { return rank_; }
  const std::string& operation() const noexcept { return operation_; }
  std::uint64_t sequence() const noexcept { return sequence_; }

 private:
  int rank_;
  std::string operation_;
  std::uint64_t sequence_;
};

// An invariant of the library itself is broken: a bug in thinwire.
class InternalError : public Error {
 public:
  using Error::Error;
};

// check(ok, "density must be in (0, 1], got ", density) throws InvalidArgument.
template <typename... Values>
void check(bool ok, const Values&... message) {
  if (!ok) [[unlikely]]
    throw InvalidArgument(concat(message...));
}

}  // namespace thinwire

// For conditions that only a bug in thinwire can break; user input is tested with check().
#define THINWIRE_ASSERT(condition)                                                          \
  do {                                                                                      \
    if (!(condition)) [[unlikely]]                                                          \
      throw ::thinwire::InternalError(                                                      \
          ::thinwire::concat(__FILE__, ":", __LINE__, ": broken invariant: ", #condition)); \
  } while (false)
