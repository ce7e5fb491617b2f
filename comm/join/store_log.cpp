#include "thinwire/comm/join/store_log.h"

#include <charconv>
#include <system_error>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

std::size_t take_number(std::string_view& log, char end) {
  std::size_t value = 0;
  const auto [stop, error] = std::from_chars(log.data(), log.data() + log.size(), value);
  const auto length = static_cast<std::size_t>(stop - log.data());
  if (error != std::errc() || length == log.size() || *stop != end)
    throw FrameError("the store holds a log that is none; does another program write to it?");
  log.remove_prefix(length + 1);
  return value;
}

}  // namespace

std::int64_t StoreLog::append(int rank, std::string_view text) {
  // "RANK LENGTH:TEXT", so that a text may hold anything.
  std::string entry = std::to_string(rank) + ' ' + std::to_string(text.size()) + ':';
  entry += text;
  store_.append(log_, {entry.begin(), entry.end()});
  return store_.add(count_, 1);
}

std::vector<LogEntry> StoreLog::read() {
  if (!exists()) return {};
  const std::string text = store_.get_to_str(log_);
  std::string_view log = text;
  std::vector<LogEntry> entries;
  while (!log.empty()) {
    const auto rank = static_cast<int>(take_number(log, ' '));
    const std::size_t length = take_number(log, ':');
    if (length > log.size()) throw FrameError("the store holds a log that is cut off");
    entries.push_back({rank, std::string(log.substr(0, length))});
    log.remove_prefix(length);
  }
  return entries;
}

void StoreLog::remove() {
  store_.deleteKey(log_);
  store_.deleteKey(count_);
}

}  // namespace thinwire::comm
