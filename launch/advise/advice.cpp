#include "thinwire/launch/advise/advice.h"

#include <algorithm>
#include <cmath>

#include "thinwire/comm/average/plan.h"
#include "thinwire/comm/average/selector.h"
#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/allocation/policy.h"

namespace thinwire::launch {
namespace {

const LoggedLayer* layer_named(const LoggedLayers& layers, const std::string& name) {
  const auto found = std::ranges::find(layers.layers, name, &LoggedLayer::name);
  return found == layers.layers.end() ? nullptr : &*found;
}

// As the rules for small and flat layers have it.
bool is_compressed(const LoggedLayer& layer, std::int64_t min_numel) {
  std::int64_t numel = 1;
  for (const std::int64_t size : layer.shape) numel *= size;
  return layer.shape.size() >= 2 && numel >= min_numel;
}

// The only backend of a link model, or the log's.
const comm::BackendLink& backend_of(const comm::LinkModel& model, const std::string& name) {
  if (model.backends.size() == 1) return model.backends.begin()->second;
  return model.backend(name);
}

// Whether enough of the exchange did not hide to say what its bytes cost.
bool tells_of_network(const LoggedProfile& profile) {
  constexpr double kLeast = 0.1;
  return profile.exposed > kLeast * profile.step_seconds;
}

}  // namespace

Advisor::Advisor(const RunLog& log, AdvisedJob job, MeasureCodec measure)
    : log_(log), job_(std::move(job)), measure_(std::move(measure)) {
  check(log.profile && log.profile->step_seconds > 0, log.name,
        " tells of no step that was measured; let the run make a few steps and end an epoch");
  check(!log.layers.empty(), log.name, " tells of no layers; train with --log");
  check(log.world_size >= 1, log.name, " does not tell how many ranks it had");
  const bool knows_link = log.link && !log.link->backends.empty();
  const int logged_hosts = std::max(1, log.hosts);
  if (job_.world == 0) {
    job_.world = job_.hosts > 0 ? job_.hosts * (log.world_size / logged_hosts) : log.world_size;
  }
  if (job_.hosts == 0) job_.hosts = std::min(job_.world, logged_hosts);
  check(job_.link || knows_link || job_.rate || tells_of_network(*log.profile), log.name,
        " does not tell what the network costs, for its exchange hides behind the backward pass: "
        "train with --profile, or name a file of `thinwire link` by --link, or the rate of the "
        "links by --rate");
  const double told = static_cast<double>(std::max(1, log.cores)) / std::max(1, log.local_size) /
                      std::max(1, log.threads);
  cores_ = job_.cores.value_or(std::max(1.0, told));
  logged_link_ = knows_link
                     ? backend_of(*log.link, log.backend)
                     : comm::scaled_link(asked_speed({}), log.world_size, logged_hosts, job_.route);
  calibrate();

  // The job's network: that of the log as it turned out to be, unless the job names another.
  link_ = job_.link ? backend_of(*job_.link, log.backend) : logged_link_;
  const int measured_world = job_.link ? job_.link->world : log.world_size;
  if (job_.rate || job_.latency || job_.world != measured_world) {
    const comm::NetworkSpeed speed = asked_speed(comm::speed_of(link_, measured_world));
    link_ = comm::scaled_link(speed, job_.world, job_.hosts, job_.route);
  }
}

comm::NetworkSpeed Advisor::asked_speed(comm::NetworkSpeed speed) const {
  if (job_.rate) speed.per_byte = 8 / *job_.rate;
  if (job_.latency) speed.latency = *job_.latency;
  return speed;
}

// Measured were seconds in which the communication thread took its part of the processor: the
// computing alone is what makes the model give the measured backward pass. A link is not under the
// training's load when it is measured on its own: bytes cost what makes the model give the part of
// the exchange that did not hide, where enough of it did not.
void Advisor::calibrate() {
  constexpr int kRounds = 12;
  const LoggedProfile& profile = *log_.profile;
  forward_ = profile.forward;
  rest_ =
      std::max(0.0, profile.step_seconds - profile.forward - profile.backward - profile.exposed);
  for (const LoggedBucket& bucket : profile.buckets) {
    ready_.push_back(profile.backward > 0 ? std::min(1.0, bucket.ready / profile.backward) : 1.0);
  }
  backward_ = profile.backward;
  if (log_.world_size == 1 || profile.backward <= 0) return;
  for (int round = 0; round < kRounds; ++round) {
    comm::StepPrediction predicted = predict_logged();
    if (predicted.backward > 0) backward_ *= profile.backward / predicted.backward;
    if (tells_of_network(profile)) fit_bytes(profile.exposed);
  }
}

// By bisection: what is exposed grows with the cost. It is that of all collectives, whose bytes
// take the same way; short calls measured alone differ in what buffers let through at once.
void Advisor::fit_bytes(double exposed) {
  constexpr int kHalvings = 40;
  double low = 1e-12, high = 1e-3;  // seconds a byte
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = std::sqrt(low * high);
    for (comm::AlphaBeta& cost : logged_link_.collectives) cost.beta = middle;
    (predict_logged().exposed > exposed ? high : low) = middle;
  }
}

comm::CodecCost Advisor::cost_of(const Codec& codec) {
  const std::string spec = codec.spec();
  const auto known = costs_.find(spec);
  if (known != costs_.end()) return known->second;
  comm::CodecCost cost;
  const comm::CodecCost* measured = job_.link ? job_.link->codec(spec) : nullptr;
  if (!measured && log_.link) measured = log_.link->codec(spec);
  cost = measured ? *measured : measure_(codec);
  costs_.emplace(spec, cost);
  return cost;
}

comm::StepWork Advisor::work(const SettingOf& setting_of, const comm::BackendLink& link, int world,
                             int hosts) {
  const LoggedLayers& layers = log_.layers.back();
  comm::StepWork step{.forward = forward_,
                      .backward = backward_,
                      .rest = rest_,
                      .cores = cores_,
                      .burst_bytes = job_.burst_bytes};
  const double beta = link.of(comm::Collective::kAllReduce).beta;
  step.burst_refill = beta > 0 ? 1 / beta : 0;
  bool compresses = false;
  for (std::size_t b = 0; b < log_.profile->buckets.size(); ++b) {
    comm::BucketUse use;
    use.codec.cost = {};
    for (const std::string& name : log_.profile->buckets[b].layers) {
      const LoggedLayer* layer = layer_named(layers, name);
      check(layer != nullptr, log_.name, " has the layer '", name,
            "' in a bucket, but not among its layers");
      const comm::LayerSetting setting = comm::parse_layer_setting(setting_of(*layer));
      if (!setting.codec || world == 1) {
        use.uncompressed_bytes += layer->bytes;
        continue;
      }
      std::int64_t numel = 1;
      for (const std::int64_t size : layer->shape) numel *= size;
      comm::CodecUse one = comm::use_of(*setting.codec, numel, DType::kFloat32, layer->shape);
      one.cost = cost_of(*setting.codec);
      if (use.strategy) {
        // Layers of one codec are alike; of several the costs are those of the last.
        const comm::CodecCost cost = one.cost;
        use.codec.add_layers(one);
        use.codec.cost = cost;
      } else {
        use.codec = one;
        use.strategy = comm::Strategy::kDense;
      }
      use.compressed_bytes += layer->bytes;
    }
    if (use.strategy) {
      use.strategy = comm::usual_strategy(use.codec, world, kFrameHeaderBytes);
      compresses = true;
    }
    step.buckets.push_back(
        {.ready = ready_[b] * backward_,
         .ops = comm::exchange_ops(use, {.world = world, .hosts = hosts}, link)});
  }
  if (compresses && world > 1) step.agreement = link.of(comm::Collective::kAllReduce).alpha;
  return step;
}

comm::StepPrediction Advisor::predict(const std::string& setting) {
  const Spec spec = Spec::parse(setting);
  check(!lgreco::is_policy(spec.name), "advise cannot foretell ", spec.name,
        "(...), whose plan depends on the training; train a few steps with it and read its log");
  comm::StepWork step = work(
      [&](const LoggedLayer& layer) {
        return is_compressed(layer, log_.min_numel) ? setting : std::string("none");
      },
      link_, job_.world, job_.hosts);
  for (double* seconds : {&step.forward, &step.backward, &step.rest})
    *seconds *= 1 + job_.straggler;
  for (auto& bucket : step.buckets) bucket.ready *= 1 + job_.straggler;
  return comm::predict_step(step);
}

comm::StepPrediction Advisor::predict_logged() {
  return comm::predict_step(work([](const LoggedLayer& layer) { return layer.setting; },
                                 logged_link_, log_.world_size, std::max(1, log_.hosts)));
}

std::vector<std::string> usual_settings(const RunLog& log) {
  std::vector<std::string> settings = {
      "none",   "cast(bf16)",         "quantize(bits=8)", "quantize(bits=4)",
      "onebit", "topk(density=0.01)", "powersgd(rank=4)"};
  const std::string own = log.compression.empty() ? "none" : log.compression;
  const Spec spec = Spec::parse(own);
  if (lgreco::is_policy(spec.name) || spec.name == "identity") return settings;
  // Whatever it is written like.
  const std::string text = comm::parse_layer_setting(own).text();
  const auto same = [&](const std::string& each) {
    return comm::parse_layer_setting(each).text() == text;
  };
  if (std::ranges::none_of(settings, same)) settings.insert(settings.begin() + 1, own);
  return settings;
}

}  // namespace thinwire::launch
