// Leveled log lines on standard error, each with the time, the host and the rank:
//   12:30:01.123 [rank 1@node7] warn: ...
// The level comes from THINWIRE_LOG_LEVEL (trace, debug, info, warn, error, off; default info).
// Thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "thinwire/common/error.h"

namespace thinwire::log {

enum class Level { kTrace, kDebug, kInfo, kWarn, kError, kOff };

void write(Level level, std::string_view message);
bool enabled(Level level);
void set_level(Level level);
// Called by launch::init; before it lines carry no rank.
void set_identity(int rank, std::string_view host);

template <typename... Args>
void trace(Args&&... args) {
  if (enabled(Level::kTrace)) write(Level::kTrace, concat(std::forward<Args>(args)...));
}
template <typename... Args>
void debug(Args&&... args) {
  if (enabled(Level::kDebug)) write(Level::kDebug, concat(std::forward<Args>(args)...));
}
template <typename... Args>
void info(Args&&... args) {
  if (enabled(Level::kInfo)) write(Level::kInfo, concat(std::forward<Args>(args)...));
}
template <typename... Args>
void warn(Args&&... args) {
  if (enabled(Level::kWarn)) write(Level::kWarn, concat(std::forward<Args>(args)...));
}
template <typename... Args>
void error(Args&&... args) {
  if (enabled(Level::kError)) write(Level::kError, concat(std::forward<Args>(args)...));
}

}  // namespace thinwire::log
