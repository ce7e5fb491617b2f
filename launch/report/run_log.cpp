#include "thinwire/launch/report/run_log.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "thinwire/common/error.h"
#include "thinwire/common/json.h"

namespace thinwire::launch {
namespace {

std::optional<double> number(const JsonPlace& place, const nlohmann::json& line,
                             const char* field) {
  // Losses that were not finite are null.
  if (!line.contains(field) || line.at(field).is_null()) return std::nullopt;
  return place.at(field).number();
}

double number_or_zero(const JsonPlace& place, const nlohmann::json& line, const char* field) {
  return number(place, line, field).value_or(0);
}

std::string text_or(const JsonPlace& place, const char* field, const std::string& otherwise) {
  return place.has(field) ? place.at(field).text() : otherwise;
}

template <typename Whole>
void read_whole(const JsonPlace& place, const char* field, Whole& into) {
  if (place.has(field)) into = static_cast<Whole>(place.at(field).whole());
}

void read_start(RunLog& log, const JsonPlace& place) {
  log.compression = text_or(place, "compression", log.compression);
  log.backend = text_or(place, "backend", log.backend);
  log.model = text_or(place, "model", log.model);
  read_whole(place, "world_size", log.world_size);
  read_whole(place, "hosts", log.hosts);
  read_whole(place, "local_size", log.local_size);
  read_whole(place, "threads", log.threads);
  read_whole(place, "cores", log.cores);
  read_whole(place, "min_numel", log.min_numel);
  read_whole(place, "parameters", log.parameters);
}

void read_point(RunLog& log, const JsonPlace& place, const nlohmann::json& line) {
  RunPoint point;
  point.step = static_cast<std::int64_t>(place.at("step").whole());
  point.seconds = number_or_zero(place, line, "train_seconds");
  point.sent_bytes = number(place, line, "sent_bytes");
  if (!point.sent_bytes && line.contains("wire_bytes_per_step")) {
    point.sent_bytes =
        number_or_zero(place, line, "wire_bytes_per_step") * static_cast<double>(point.step);
  }
  point.train_loss = number(place, line, "train_loss");
  if (!point.train_loss) point.train_loss = number(place, line, "train_bpc");
  point.test_loss = number(place, line, "test_loss");
  if (!point.test_loss) point.test_loss = number(place, line, "validation_bpc");
  if (line.contains("train_bpc") || line.contains("validation_bpc")) {
    log.loss_unit = "bits per character";
  }
  point.accuracy = number(place, line, "test_accuracy");
  log.points.push_back(point);
}

void read_layers(RunLog& log, const JsonPlace& place, const nlohmann::json& line) {
  LoggedLayers layers{.step = static_cast<std::int64_t>(place.at("step").whole())};
  const JsonPlace list = place.at("layers");
  for (std::size_t i = 0; i < list.size(); ++i) {
    const JsonPlace at = list.at(i);
    LoggedLayer layer{.name = at.at("name").text(),
                      .setting = at.at("setting").text(),
                      .bytes = at.at("bytes").number(),
                      .payload_bytes = at.at("payload_bytes").number(),
                      .error = number(at, line.at("layers").at(i), "relative_error")};
    const JsonPlace shape = at.at("shape");
    for (std::size_t d = 0; d < shape.size(); ++d) {
      layer.shape.push_back(static_cast<std::int64_t>(shape.at(d).whole()));
    }
    layers.layers.push_back(std::move(layer));
  }
  log.layers.push_back(std::move(layers));
}

LoggedProfile read_profile(const JsonPlace& place) {
  const auto seconds = [&](const char* field) { return place.at(field).number(); };
  LoggedProfile profile{.step = static_cast<std::int64_t>(place.at("step").whole()),
                        .step_seconds = seconds("step_seconds"),
                        .forward = seconds("forward_seconds"),
                        .backward = seconds("backward_seconds"),
                        .exposed = seconds("exposed_seconds"),
                        .compress = seconds("compress_seconds"),
                        .exchange = seconds("exchange_seconds"),
                        .decompress = seconds("decompress_seconds"),
                        .compress_cpu = seconds("compress_cpu_seconds"),
                        .decompress_cpu = seconds("decompress_cpu_seconds")};
  const JsonPlace buckets = place.at("buckets");
  for (std::size_t i = 0; i < buckets.size(); ++i) {
    const JsonPlace at = buckets.at(i);
    LoggedBucket bucket{.bytes = at.at("bytes").number(),
                        .ready = at.at("ready_seconds").number(),
                        .begun = at.at("begun_seconds").number(),
                        .finished = at.at("finished_seconds").number()};
    const JsonPlace layers = at.at("layers");
    for (std::size_t l = 0; l < layers.size(); ++l) bucket.layers.push_back(layers.at(l).text());
    profile.buckets.push_back(std::move(bucket));
  }
  return profile;
}

void read_result(RunLog& log, const JsonPlace& place, const nlohmann::json& line) {
  read_start(log, place);
  log.finished = true;
  log.accuracy = number(place, line, "test_accuracy");
  log.train_seconds = number(place, line, "train_seconds");
  log.wire_bytes_per_step = number(place, line, "wire_bytes_per_step");
  log.dense_bytes_per_step = number(place, line, "dense_bytes_per_step");
}

void read_line(RunLog& log, const nlohmann::json& line, const std::string& source) {
  const JsonPlace place(line, source);
  const std::string event = place.at("event").text();
  if (event == "start") {
    read_start(log, place);
  } else if (event == "link") {
    log.link = comm::parse_link_model(line.at("model").dump(), source);
  } else if (event == "layers") {
    read_layers(log, place, line);
  } else if (event == "profile") {
    log.profile = read_profile(place);
  } else if (event == "result") {
    read_result(log, place, line);
  } else if (line.contains("step")) {
    read_point(log, place, line);
  }
}

}  // namespace

RunLog parse_run_log(std::string_view text, const std::string& source) {
  RunLog log{.name = std::filesystem::path(source).stem().string(), .loss_unit = "nats"};
  int number = 0;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const bool whole = end != std::string_view::npos;
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(whole ? end + 1 : text.size());
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = concat(source, ": line ", number);
    if (!whole && !nlohmann::json::accept(line)) break;  // torn
    read_line(log, parse_json(line, where), where);
  }
  if (log.points.empty() && !log.finished) {
    throw FileError(concat(source,
                           ": no line of it tells of a training step; it should be what a "
                           "training example wrote with --log"));
  }
  // Tests and progress of one step are told by two lines.
  std::ranges::stable_sort(log.points, {}, &RunPoint::step);
  return log;
}

}  // namespace thinwire::launch
