#include "thinwire/launch/cli/replay/replay.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <future>
#include <limits>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/common/thread_time.h"
#include "thinwire/compressors/allocation/schedule.h"
#include "thinwire/torch_ext/ddp/gradient_exchange.h"

namespace thinwire::launch {
namespace {

std::vector<LayerInfo> infos_of(const Recording& recording) {
  std::vector<LayerInfo> infos;
  for (const RecordedLayer& layer : recording.layers()) infos.push_back({layer.name, layer.shape});
  return infos;
}

// A run of one spec: what is to be done, and what comes of it.
struct Run {
  const Recording& recording;
  CompressionOptions compression;
  std::vector<bool> counted = {};  // layers
  std::int64_t counted_numel = 0;
  std::int64_t before = 0;  // steps until lgreco(...) has a plan
  std::int64_t skip = 0;

  // Of rank 0. Sums of squares by layer, and the sums of means that they need.
  std::vector<double> sum = {}, exact_sum = {}, lost = {}, energy = {};
  std::int64_t finite_steps = 0;
  ReplayRow row = {};
};

// lgreco(...) with its first plan as soon as can be.
std::string at_once(const std::string& text) {
  Spec spec = Spec::parse(text);
  check(spec.name != "auto",
        "replay cannot foretell auto, which goes by the time of training steps; "
        "name the settings that it chooses from, such as 'cast(bf16);quantize(bits=4)'");
  if (spec.name != "lgreco") return text;
  std::erase_if(spec.arguments, [](const Spec::Argument& argument) {
    return argument.key == "warmup" || argument.key == "first";
  });
  for (const char* key : {"warmup", "first"}) {
    spec.arguments.push_back({.key = key, .text = "0", .nested = {}});
  }
  return spec.str();
}

std::int64_t steps_to_first_plan(const Run& run) {
  const auto adaptive = make_plan(infos_of(run.recording), run.compression).adaptive;
  if (!adaptive) return 0;
  const lgreco::Schedule schedule(adaptive->policy);
  return schedule.first() + 2 * schedule.lag() + 1;
}

// The layers that a codec would compress.
void count_layers(Run& run) {
  CompressionOptions any = run.compression;
  any.spec = "cast(bf16)";
  const std::vector<LayerInfo> infos = infos_of(run.recording);
  const comm::Plan plan = make_plan(infos, any).plan;
  for (const LayerInfo& layer : infos) {
    run.counted.push_back(plan.of(layer.name).codec != nullptr);
  }
  if (std::ranges::none_of(run.counted, [](bool counted) { return counted; })) {
    run.counted.assign(run.counted.size(), true);
  }
  for (std::size_t l = 0; l < run.counted.size(); ++l) {
    if (run.counted[l]) run.counted_numel += run.recording.layers()[l].numel;
  }
}

comm::Bucket bucket_of(const Recording& recording, std::int64_t step, int rank) {
  comm::Bucket bucket;
  bucket.buffer = at::empty({recording.numel()}, at::kFloat);
  std::int64_t offset = 0;
  for (const RecordedLayer& layer : recording.layers()) {
    bucket.layers.push_back({layer.name, offset, layer.shape});
    offset += layer.numel;
  }
  recording.read(step, rank,
                 {bucket.buffer.mutable_data_ptr<float>(), static_cast<std::size_t>(offset)});
  return bucket;
}

// Returns the processor time that the communication thread has used since it began.
double exchange(GradientExchange& gradients, comm::Bucket bucket) {
  std::promise<double> done;
  gradients.submit(std::move(bucket), /*last=*/true, [&](const std::exception_ptr& failure) {
    if (failure) {
      done.set_exception(failure);
    } else {
      done.set_value(thread_seconds());
    }
  });
  return done.get_future().get();
}

void add_step(Run& run, std::int64_t step, std::span<const float> found) {
  const Recording& recording = run.recording;
  std::vector<double> exact(found.size());
  std::vector<float> other(found.size());
  for (int rank = 0; rank < recording.world(); ++rank) {
    recording.read(step, rank, other);
    for (std::size_t i = 0; i < other.size(); ++i) exact[i] += double{other[i]};
  }
  const auto finite = [](double value) { return std::isfinite(value); };
  if (!std::ranges::all_of(exact, finite)) return;
  ++run.finite_steps;
  std::size_t at = 0;
  for (std::size_t l = 0; l < recording.layers().size(); ++l) {
    const auto end = at + static_cast<std::size_t>(recording.layers()[l].numel);
    for (; at < end; ++at) {
      const double mean = exact[at] / recording.world();
      const double difference = double{found[at]} - mean;
      run.lost[l] += difference * difference;
      run.energy[l] += mean * mean;
      run.sum[at] += double{found[at]};
      run.exact_sum[at] += mean;
    }
  }
}

void note_bits(Run& run, const comm::Traffic& sent, std::int64_t steps) {
  const int world = run.recording.world();
  if (world == 1) return;
  // The other layers travel as float32, there and back.
  const auto others = static_cast<double>(run.recording.numel() - run.counted_numel);
  const double of_others = others * sizeof(float) * (world - 1) / world;
  const auto bits = [&](std::uint64_t bytes) {
    const double a_step = static_cast<double>(bytes) / static_cast<double>(steps) - of_others;
    return 8 * a_step * world / (world - 1) / static_cast<double>(run.counted_numel);
  };
  run.row.bits_up = bits(sent.sent_bytes - sent.mean_bytes);
  run.row.bits_down = bits(sent.mean_bytes);
}

// What one rank does. Rank 0 keeps the account.
void average_all(Run& run, const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
  const Recording& recording = run.recording;
  const int rank = group->getRank();
  GradientExchange gradients(group, "recorded gradients", infos_of(recording), run.compression);
  for (std::int64_t step = 0; step < run.before; ++step) {
    exchange(gradients, bucket_of(recording, step % recording.steps(), rank));
  }
  const auto traffic = [&] {
    const CommunicationSummary summary = gradients.summary();
    comm::Traffic sent = summary.total;
    sent.sent_bytes -= summary.adaptation.sent_bytes;
    return sent;
  };
  double least = std::numeric_limits<double>::infinity();
  double clock = 0;
  comm::Traffic before;
  for (std::int64_t step = 0; step < recording.steps(); ++step) {
    if (step == run.skip) before = traffic();
    const comm::Bucket bucket = bucket_of(recording, step, rank);
    const double now = exchange(gradients, bucket);
    if (step > 0) least = std::min(least, now - clock);
    clock = now;
    if (rank > 0 || step < run.skip) continue;
    add_step(run, step,
             {bucket.buffer.const_data_ptr<float>(), static_cast<std::size_t>(recording.numel())});
  }
  if (rank > 0) return;
  if (recording.steps() == 1) least = clock;
  run.row.seconds_per_element = least / static_cast<double>(recording.numel());
  comm::Traffic sent = traffic();
  sent.sent_bytes -= before.sent_bytes;
  sent.mean_bytes -= before.mean_bytes;
  note_bits(run, sent, recording.steps() - run.skip);
  const comm::Plan plan = gradients.plan();
  for (const RecordedLayer& layer : recording.layers()) {
    const comm::LayerSetting& setting = plan.of(layer.name);
    run.row.layers.push_back({.name = layer.name,
                              .numel = layer.numel,
                              .spec = setting.codec ? setting.codec->spec() : "none"});
  }
}

double ratio(double lost, double energy) {
  return energy > 0 ? std::sqrt(lost / energy) : 0;
}

void note_errors(Run& run) {
  double lost = 0, energy = 0, sum_lost = 0, sum_energy = 0;
  std::size_t at = 0;
  for (std::size_t l = 0; l < run.counted.size(); ++l) {
    double layer_lost = 0, layer_energy = 0;
    const auto end = at + static_cast<std::size_t>(run.recording.layers()[l].numel);
    for (; at < end; ++at) {
      layer_lost += std::pow(run.sum[at] - run.exact_sum[at], 2);
      layer_energy += std::pow(run.exact_sum[at], 2);
    }
    run.row.layers[l].error = {ratio(run.lost[l], run.energy[l]), ratio(layer_lost, layer_energy)};
    if (!run.counted[l]) continue;
    lost += run.lost[l];
    energy += run.energy[l];
    sum_lost += layer_lost;
    sum_energy += layer_energy;
  }
  run.row.error = {ratio(lost, energy), ratio(sum_lost, sum_energy)};
}

// What is wrong with the whole run is said once and not by a rank that tells the others.
void check_run(const Run& run, const ReplayOptions& options) {
  check(options.skip >= 0 && options.skip < run.recording.steps(), "of ", run.recording.steps(),
        " recorded steps ", options.skip, " cannot be skipped");
  make_plan(infos_of(run.recording), run.compression);
  if (options.strategy != "auto") comm::parse_strategy(options.strategy);
}

}  // namespace

ReplayRow replay(const Recording& recording, const std::string& spec,
                 const ReplayOptions& options) {
  Run run{.recording = recording, .compression = at_once(spec), .skip = options.skip};
  run.compression.min_numel = options.min_numel;
  run.compression.compress_1d = options.compress_1d;
  run.compression.strategy = options.strategy;
  check_run(run, options);
  count_layers(run);
  run.before = steps_to_first_plan(run);
  run.sum.resize(static_cast<std::size_t>(recording.numel()));
  run.exact_sum.resize(run.sum.size());
  run.lost.resize(recording.layers().size());
  run.energy.resize(run.lost.size());
  run.row.spec = spec;
  run.row.strategy = options.strategy;

  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::mutex mutex;
  std::exception_ptr failure;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < recording.world(); ++rank) {
    threads.emplace_back([&, rank] {
      try {
        average_all(run, comm::make_process_group("gloo", store, rank, recording.world(),
                                                  {.hostname = "127.0.0.1"}));
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
  check(run.finite_steps > 0, "no recorded step has gradients that are finite on all ranks");
  note_errors(run);
  return run.row;
}

}  // namespace thinwire::launch
