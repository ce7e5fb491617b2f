// Leveled log lines on standard error, each with the time, the host and the rank:
//   12:30:01.123 [rank 1@node7] warn: ...
// The level comes from THINWIRE_LOG_LEVEL (trace, debug, info, warn, error, off; default info).
// Whatever a terminal would obey in a message is escaped (see printable.h). Thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "thinwire/common/text.h"

namespace thinwire::log {

enum class Level { kTrace, kDebug, kInfo, kWarn, kError, kOff };

void write(Level level, std::string_view message);
bool enabled(Level level);
void set_level(Level level);
// Called by launch::init; before it lines carry no rank.
void set_identity(int rank, std::string_view host);

template <typename... Values>
void trace(const Values&... values) {
  if (enabled(Level::kTrace)) write(Level::kTrace, concat(values...));
}
template <typename... Values>
void debug(const Values&... values) {
  if (enabled(Level::kDebug)) write(Level::kDebug, concat(values...));
}
template <typename... Values>
void info(const Values&... values) {
  if (enabled(Level::kInfo)) write(Level::kInfo, concat(values...));
}
template <typename... Values>
void warn(const Values&... values) {
  if (enabled(Level::kWarn)) write(Level::kWarn, concat(values...));
}
template <typename... Values>
void error(const Values&... values) {
  if (enabled(Level::kError)) write(Level::kError, concat(values...));
}

}  // namespace thinwire::log
