#include "thinwire/common/metrics.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

nlohmann::ordered_json json_of(const MetricValue& value) {
  using Json = nlohmann::ordered_json;
  if (const auto* json = std::get_if<MetricJson>(&value)) {
    Json parsed = Json::parse(json->text, nullptr, /*allow_exceptions=*/false);
    check(!parsed.is_discarded(), "not a JSON value: ", json->text);
    return parsed;
  }
  return std::visit(
      [](const auto& v) -> Json {
        if constexpr (std::is_same_v<std::decay_t<decltype(v)>, MetricJson>) {
          return {};
        } else {
          return v;
        }
      },
      value);
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
