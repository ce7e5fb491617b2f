// Training logs as JSON lines: one object a line, flushed line by line.
#pragma once

#include <cstdio>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace thinwire {

// A value that is JSON already: a list or an object.
struct MetricJson {
  std::string text;
};

// A metric value; non-finite numbers are written as null, as JSON has none.
using MetricValue = std::variant<std::int64_t, double, bool, std::string, MetricJson>;
using MetricFields = std::vector<std::pair<std::string, MetricValue>>;

// Appends {"event":EVENT, FIELDS...} lines to a file. Thread-safe.
class MetricsLog {
 public:
  // Truncates the file; throws FileError where it cannot be written.
  explicit MetricsLog(const std::filesystem::path& path);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  // Throws FileError when the disk refuses the line, InvalidArgument for a MetricJson that is none.
  void write(std::string_view event, const MetricFields& fields);

 private:
  std::mutex mutex_;
  std::filesystem::path path_;
  std::FILE* file_;
};

}  // namespace thinwire
