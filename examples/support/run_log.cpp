#include "thinwire/examples/support/run_log.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "thinwire/comm/average/plan.h"
#include "thinwire/comm/link/link_probe.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/allocation/policy.h"
#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire::examples {
namespace {

using Json = nlohmann::ordered_json;

// Of every kind one; others are measured by who asks about them.
constexpr std::string_view kMeasuredCodecs =
    "cast(bf16);quantize(bits=4);quantize(bits=8);topk(density=0.01);powersgd(rank=4);onebit";

MetricJson metric_of(const Json& json) {
  return {json.dump(-1, ' ', false, Json::error_handler_t::replace)};
}

}  // namespace

void log_start(MetricsLog& log, const launch::World& world, const RunStart& start) {
  const std::set<std::string> hosts(world.hosts().begin(), world.hosts().end());
  log.write("start", {{"backend", world.backend()},
                      {"compression", start.compression},
                      {"world_size", std::int64_t{world.size()}},
                      {"hosts", static_cast<std::int64_t>(hosts.size())},
                      {"local_size", std::int64_t{world.local_size()}},
                      {"model", start.model},
                      {"batch_size", start.batch_size},
                      {"threads", std::int64_t{at::get_num_threads()}},
                      {"cores", static_cast<std::int64_t>(std::thread::hardware_concurrency())},
                      {"min_numel", start.min_numel},
                      {"parameters", start.parameters}});
}

void log_link(MetricsLog& log, const comm::LinkModel& model) {
  log.write("link", {{"model", MetricJson{comm::to_json(model)}}});
}

void log_layers(MetricsLog& log, std::int64_t step, const std::vector<LayerReport>& layers) {
  Json list = Json::array();
  for (const LayerReport& layer : layers) {
    Json error = nullptr;
    if (std::isfinite(layer.relative_error)) error = layer.relative_error;
    list.push_back({{"name", layer.name},
                    {"shape", layer.shape},
                    {"setting", layer.setting},
                    {"bytes", layer.bytes},
                    {"payload_bytes", layer.payload_bytes},
                    {"relative_error", error}});
  }
  log.write("layers", {{"step", step}, {"layers", metric_of(list)}});
}

void log_profile(MetricsLog& log, std::int64_t step, const StepProfile& profile) {
  Json buckets = Json::array();
  for (const BucketProfile& bucket : profile.buckets) {
    buckets.push_back({{"bytes", bucket.bytes},
                       {"layers", bucket.layers},
                       {"ready_seconds", bucket.ready},
                       {"begun_seconds", bucket.begun},
                       {"finished_seconds", bucket.finished}});
  }
  log.write("profile", {{"step", step},
                        {"steps", profile.steps},
                        {"step_seconds", profile.step},
                        {"forward_seconds", profile.forward},
                        {"backward_seconds", profile.backward},
                        {"exposed_seconds", profile.exposed},
                        {"compress_seconds", profile.compress},
                        {"exchange_seconds", profile.exchange},
                        {"decompress_seconds", profile.decompress},
                        {"compress_cpu_seconds", profile.compress_cpu},
                        {"decompress_cpu_seconds", profile.decompress_cpu},
                        {"buckets", metric_of(buckets)}});
}

comm::LinkModel measure_link(const launch::World& world, const std::string& compression) {
  comm::LinkModel model;
  model.world = world.size();
  model.hosts = world.hosts();
  if (world.size() > 1) {
    constexpr std::int64_t kLargest = std::int64_t{4} << 20;
    model.backends[world.backend()] =
        comm::probe_backend(*world.group(), {.largest = kLargest, .pairs = false});
  }
  const auto measure = [&](const CodecPtr& codec) {
    if (!codec || model.codec(codec->spec())) return;
    model.codecs[codec->spec()] = comm::probe_codec(*world.group(), *codec);
  };
  for (const Spec& spec : Spec::parse_list(std::string(kMeasuredCodecs))) measure(make_codec(spec));
  if (!lgreco::is_policy(Spec::parse(compression).name))
    measure(comm::parse_layer_setting(compression).codec);
  return model;
}

}  // namespace thinwire::examples
