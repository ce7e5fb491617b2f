#include "thinwire/common/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <array>
#include <atomic>
#include <memory>

#include "thinwire/common/env.h"
#include "thinwire/common/printable.h"

namespace thinwire::log {
namespace {

constexpr std::array<std::string_view, 6> kNames = {"trace", "debug", "info",
                                                    "warn",  "error", "off"};

// A malformed variable is reported by whoever needs it; until then the log works at its default.
Level level_of_environment() noexcept {
  try {
    const std::string& name = Env::get().log_level;
    for (std::size_t i = 0; i < kNames.size(); ++i) {
      if (kNames[i] == name) return static_cast<Level>(i);
    }
  } catch (const std::exception&) {
  }
  return Level::kInfo;
}

std::atomic<Level>& level() {
  static std::atomic<Level> current = level_of_environment();
  return current;
}

// Never destroyed: threads may still log while the program's statics go.
spdlog::logger& logger() {
  static spdlog::logger& instance = [&]() -> spdlog::logger& {
    auto& made = *new spdlog::logger("thinwire", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made.set_level(spdlog::level::trace);
    made.set_pattern("%H:%M:%S.%e %v");
    return made;
  }();
  return instance;
}

}  // namespace

bool enabled(Level wanted) {
  return wanted != Level::kOff && wanted >= level().load(std::memory_order_relaxed);
}

void set_level(Level wanted) {
  level().store(wanted, std::memory_order_relaxed);
}

void set_identity(int rank, std::string_view host) {
  std::string pattern = concat("%H:%M:%S.%e [rank ", rank, "@");
  for (const char c : printable(host)) pattern += c == '%' ? std::string("%%") : std::string(1, c);
  logger().set_pattern(pattern + "] %v");
}

void write(Level wanted, std::string_view message) {
  if (!enabled(wanted)) return;
  // The level is part of the text, since spdlog's own names differ ("warning").
  logger().log(spdlog::level::info, concat(kNames[static_cast<std::size_t>(wanted)], ": ",
                                           printable(message, Lines::kKeep)));
}

}  // namespace thinwire::log
