// A trace of what the library did when, in Chrome's trace format (chrome://tracing, Perfetto).
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "thinwire/common/stopwatch.h"

namespace thinwire {

// Writes complete ("X") events; the file is valid JSON after every event. Times are those of the
// wall clock at construction plus the steady clock since, so that the arrays of several ranks can
// be joined to one trace. Thread-safe.
class Timeline {
 public:
  using Clock = thinwire::Clock;

  // `rank` is the trace's process id. Throws FileError where the file cannot be written.
  Timeline(const std::filesystem::path& path, int rank);
  ~Timeline();
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;

  // One span on the named track ("bucket 3"); phases are QUEUE, COMPRESS, EXCHANGE, DECOMPRESS.
  // When the disk refuses an event, a warning is logged and the timeline ends there.
  void record(std::string_view track, std::string_view phase, Clock::time_point begin,
              Clock::time_point end, std::int64_t bytes = -1);

  // Records from construction to destruction; does nothing for a null timeline.
  class Span {
   public:
    Span(Timeline* timeline, std::string track, std::string_view phase, std::int64_t bytes = -1)
        : timeline_(timeline),
          track_(std::move(track)),
          phase_(phase),
          bytes_(bytes),
          begin_(Clock::now()) {}
    ~Span();
    Span(const Span&) = delete;
    Span& operator=(const Span&) = delete;

   private:
    Timeline* timeline_;
    std::string track_;
    std::string phase_;
    std::int64_t bytes_;
    Clock::time_point begin_;
  };

 private:
  void append(const std::string& event);

  std::mutex mutex_;
  std::filesystem::path path_;
  std::FILE* file_;
  int rank_;
  bool empty_ = true;
  Clock::time_point start_;
  std::chrono::nanoseconds wall_start_;  // of start_, since 1970
  std::map<std::string, int, std::less<>> tracks_;
};

}  // namespace thinwire
