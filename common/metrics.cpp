#include "thinwire/common/metrics.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

nlohmann::ordered_json json_of(const MetricValue& value) {
  return std::visit([](const auto& v) { return nlohmann::ordered_json(v); }, value);
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& path)
    : path_(path), file_(std::fopen(path.c_str(), "w")) {
  if (!file_) {
    throw FileError(concat("cannot write the metrics log ", path, ": ", std::strerror(errno)));
  }
}

MetricsLog::~MetricsLog() {
  std::fclose(file_);
}

void MetricsLog::write(std::string_view event, const MetricFields& fields) {
  nlohmann::ordered_json line{{"event", event}};
  // nlohmann writes a non-finite number as null.
  for (const auto& [name, value] : fields) line[name] = json_of(value);
  // Text that is not UTF-8, a host's or a file's name, must not end a training run.
  const std::string text =
      line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";

  const std::lock_guard lock(mutex_);
  const bool written = std::fwrite(text.data(), 1, text.size(), file_) == text.size();
  if (!written || std::fflush(file_) != 0) {
    const int reason = errno;
    std::clearerr(file_);
    throw FileError(concat("cannot write to the metrics log ", path_, ": ", std::strerror(reason)));
  }
}

}  // namespace thinwire
