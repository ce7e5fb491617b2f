#include "thinwire/common/timeline.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire {
namespace {

// What follows the last event and makes the file a JSON array; the next event is written over it.
constexpr std::string_view kClosing = "\n]\n";

std::string quoted(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Nanoseconds as Chrome's microseconds, without the rounding of a double.
std::string microseconds(std::chrono::nanoseconds time) {
  const long long ns = std::max<long long>(time.count(), 0);
  char text[32];
  std::snprintf(text, sizeof(text), "%lld.%03lld", ns / 1000, ns % 1000);
  return text;
}

std::string name_event(std::string_view kind, int process, int thread, std::string_view name) {
  return concat(R"({"name":")", kind, R"(","ph":"M","pid":)", process, R"(,"tid":)", thread,
                R"(,"args":{"name":)", quoted(name), "}}");
}

}  // namespace

Timeline::Timeline(const std::filesystem::path& path, int rank)
    : path_(path),
      file_(std::fopen(path.c_str(), "w")),
      rank_(rank),
      start_(Clock::now()),
      wall_start_(std::chrono::system_clock::now().time_since_epoch()) {
  if (!file_) {
    throw FileError(concat("cannot write the timeline ", path, ": ", std::strerror(errno)));
  }
  // An event and the closing bracket leave in one write, so that a reader, or a program that dies,
  // finds either the old array or the new one.
  std::setvbuf(file_, nullptr, _IOFBF, 1 << 16);
  append(name_event("process_name", rank, 0, concat("rank ", rank)));
  if (!file_) throw FileError(concat("cannot write the timeline ", path));
}

Timeline::~Timeline() {
  if (file_) std::fclose(file_);
}

void Timeline::record(std::string_view track, std::string_view phase, Clock::time_point begin,
                      Clock::time_point end, std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (!file_) return;
  std::string text;
  auto found = tracks_.find(track);
  if (found == tracks_.end()) {
    found = tracks_.emplace(track, static_cast<int>(tracks_.size()) + 1).first;
    text = name_event("thread_name", rank_, found->second, track) + ",\n";
  }
  text += concat(R"({"name":)", quoted(phase), R"(,"ph":"X","pid":)", rank_, R"(,"tid":)",
                 found->second, R"(,"ts":)", microseconds(wall_start_ + (begin - start_)),
                 R"(,"dur":)", microseconds(end - begin));
  if (bytes >= 0) text += concat(R"(,"args":{"bytes":)", bytes, "}");
  append(text + "}");
}

void Timeline::append(const std::string& event) {
  std::string text = empty_ ? "[\n" : ",\n";
  text += event;
  text += kClosing;
  const long back = empty_ ? 0 : -static_cast<long>(kClosing.size());
  if (std::fseek(file_, back, SEEK_END) == 0 &&
      std::fwrite(text.data(), 1, text.size(), file_) == text.size() && std::fflush(file_) == 0) {
    empty_ = false;
    return;
  }
  // A trace is not worth a training run: say so once and go on without it.
  log::warn("the timeline ", path_, " ends here, it cannot be written: ", std::strerror(errno));
  std::fclose(file_);
  file_ = nullptr;
}

Timeline::Span::~Span() {
  if (!timeline_) return;
  try {
    timeline_->record(track_, phase_, begin_, Clock::now(), bytes_);
  } catch (const std::exception&) {
    // Out of memory: the span is lost, a destructor must not throw.
  }
}

}  // namespace thinwire
