#include "thinwire/launch/report/page.h"

#include <nlohmann/json.hpp>
#include <string_view>

#include "thinwire/common/error.h"
#include "thinwire/launch/report/page_text.h"

namespace thinwire::launch {
namespace {

using Json = nlohmann::ordered_json;

Json json_of(const std::optional<double>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json json_of(const RunPoint& point) {
  return {{"step", point.step},
          {"seconds", point.seconds},
          {"bytes", json_of(point.sent_bytes)},
          {"loss", json_of(point.train_loss)},
          {"testLoss", json_of(point.test_loss)},
          {"accuracy", json_of(point.accuracy)}};
}

Json json_of(const LoggedLayer& layer) {
  double numel = 1;
  for (const std::int64_t size : layer.shape) numel *= static_cast<double>(size);
  return {{"name", layer.name},
          {"numel", numel},
          {"setting", layer.setting},
          {"bytes", layer.bytes},
          {"payload", layer.payload_bytes},
          {"error", json_of(layer.error)}};
}

Json json_of(const LoggedProfile& profile) {
  return {{"step", profile.step_seconds},    {"forward", profile.forward},
          {"backward", profile.backward},    {"exposed", profile.exposed},
          {"compress", profile.compress},    {"exchange", profile.exchange},
          {"decompress", profile.decompress}};
}

Json json_of(const RunLog& run) {
  Json points = Json::array(), plans = Json::array();
  for (const RunPoint& point : run.points) points.push_back(json_of(point));
  for (const LoggedLayers& at : run.layers) {
    Json layers = Json::array();
    for (const LoggedLayer& layer : at.layers) layers.push_back(json_of(layer));
    plans.push_back({{"step", at.step}, {"layers", std::move(layers)}});
  }
  return {{"name", run.name},
          {"compression", run.compression},
          {"backend", run.backend},
          {"model", run.model},
          {"lossUnit", run.loss_unit},
          {"world", run.world_size},
          {"hosts", run.hosts},
          {"parameters", run.parameters},
          {"finished", run.finished},
          {"accuracy", json_of(run.accuracy)},
          {"seconds", json_of(run.train_seconds)},
          {"wire", json_of(run.wire_bytes_per_step)},
          {"dense", json_of(run.dense_bytes_per_step)},
          {"profile", run.profile ? json_of(*run.profile) : Json(nullptr)},
          {"points", std::move(points)},
          {"plans", std::move(plans)}};
}

Json json_of(const TraceStep& trace) {
  Json spans = Json::array();
  for (const TraceSpan& span : trace.spans) {
    spans.push_back({{"track", span.track},
                     {"phase", span.phase},
                     {"begin", span.begin},
                     {"end", span.end},
                     {"bytes", span.bytes ? Json(*span.bytes) : Json(nullptr)}});
  }
  return {{"name", trace.name},       {"steps", trace.steps},
          {"seconds", trace.seconds}, {"backwardEnd", trace.backward_end},
          {"hidden", trace.hidden},   {"exposed", trace.exposed},
          {"spans", std::move(spans)}};
}

void put(std::string& page, std::string_view mark, std::string_view text) {
  const std::size_t at = page.find(mark);
  THINWIRE_ASSERT(at != std::string::npos);
  page.replace(at, mark.size(), text);
}

}  // namespace

std::string report_data(const std::vector<RunLog>& runs, const std::vector<TraceStep>& traces) {
  Json document = {{"runs", Json::array()}, {"timelines", Json::array()}};
  for (const RunLog& run : runs) document["runs"].push_back(json_of(run));
  for (const TraceStep& trace : traces) document["timelines"].push_back(json_of(trace));
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string report_page(const std::vector<RunLog>& runs, const std::vector<TraceStep>& traces) {
  // A name in the data must not end the script.
  std::string data;
  for (const char c : report_data(runs, traces)) {
    if (c == '<') {
      data += "\\u003c";
    } else {
      data += c;
    }
  }
  std::string page(kPageText);
  put(page, "/*SCRIPT*/", kPageScript);
  put(page, "/*DATA*/", data);
  return page;
}

}  // namespace thinwire::launch
