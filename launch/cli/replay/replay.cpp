#include "thinwire/launch/cli/replay/replay.h"

#include <ATen/ops/empty.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/comm/average/bucket_layout.h"
#include "thinwire/comm/backend/process_group.h"
#include "thinwire/common/error.h"
#include "thinwire/torch_ext/compression/compression.h"

namespace thinwire::launch {
namespace {

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Sums of squares by layer, and the sums of means that they need.
struct Ledger {
  explicit Ledger(const Recording& recording)
      : sum(static_cast<std::size_t>(recording.numel())),
        exact_sum(sum.size()),
        lost(recording.layers().size()),
        energy(lost.size()) {}

  std::vector<double> sum, exact_sum;
  std::vector<double> lost, energy;
};

void add_step(const Recording& recording, std::span<const float> found,
              std::span<const double> exact, Ledger& ledger) {
  std::size_t at = 0;
  for (std::size_t l = 0; l < recording.layers().size(); ++l) {
    const auto end = at + static_cast<std::size_t>(recording.layers()[l].numel);
    for (; at < end; ++at) {
      const double difference = static_cast<double>(found[at]) - exact[at];
      ledger.lost[l] += difference * difference;
      ledger.energy[l] += exact[at] * exact[at];
      ledger.sum[at] += static_cast<double>(found[at]);
      ledger.exact_sum[at] += exact[at];
    }
  }
}

double ratio(double lost, double energy) {
  return energy > 0 ? std::sqrt(lost / energy) : 0;
}

comm::Bucket bucket_of(const Recording& recording) {
  comm::Bucket bucket;
  bucket.buffer = at::empty({recording.numel()}, at::kFloat);
  std::int64_t offset = 0;
  for (const RecordedLayer& layer : recording.layers()) {
    bucket.layers.push_back({layer.name, offset, layer.shape});
    offset += layer.numel;
  }
  return bucket;
}

// Which part of the bytes are on the way to the owners: half, but where slots differ in size or
// nothing comes back.
double share_of_up(const comm::SharedSteps::State& steps, const comm::Bucket& bucket,
                   const comm::Plan& plan, const comm::AveragerOptions& options,
                   c10d::ProcessGroup& group) {
  std::array<double, 2> bits{};
  for (const auto& [spec, codec] : steps) {
    for (const auto& [name, slots] : codec.groups) {
      for (const std::size_t leg : {comm::kToOwners, comm::kToAll}) {
        bits[leg] += slots.slot_bits[leg] * static_cast<double>(slots.numel);
      }
    }
  }
  if (bits[0] > 0) return bits[0] / (bits[0] + bits[1]);
  const auto ways = comm::choose_strategies(bucket, plan, /*step=*/0, options,
                                            comm::backend_name(group), group.getSize());
  const bool gathers = std::ranges::all_of(ways, [](const comm::LayerStrategy& way) {
    return !way.codec || way.strategy == comm::Strategy::kGatherReduce;
  });
  return gathers ? 1.0 : 0.5;
}

// What one rank does. Rank 0 fills the ledger and the row's numbers.
void average_all(const Recording& recording, const comm::Plan& plan, const ReplayOptions& options,
                 c10::intrusive_ptr<c10d::ProcessGroup> group, Ledger& ledger, ReplayRow& row) {
  const int rank = group->getRank();
  const int world = group->getSize();
  comm::AveragerOptions averager_options;
  if (options.strategy != "auto") {
    averager_options.strategy = comm::parse_strategy(options.strategy);
  }
  comm::BucketAverager averager(group, averager_options);
  std::vector<float> other(static_cast<std::size_t>(recording.numel()));
  std::vector<double> exact(other.size());
  std::int64_t compressed = 0;
  for (const RecordedLayer& layer : recording.layers()) {
    if (plan.of(layer.name).codec) compressed += layer.numel;
  }
  double least = std::numeric_limits<double>::infinity();
  std::uint64_t sent_before = 0;
  for (std::int64_t step = 0; step < recording.steps(); ++step) {
    comm::Bucket bucket = bucket_of(recording);
    const std::span<float> values(bucket.buffer.mutable_data_ptr<float>(), other.size());
    recording.read(step, rank, values);
    if (step == options.skip) sent_before = averager.traffic().sent_bytes;
    const double begun = thread_seconds();
    averager.average(bucket, plan, step);
    const double seconds = thread_seconds() - begun;
    if (rank > 0 || step < options.skip) continue;
    least = std::min(least, seconds);
    std::ranges::fill(exact, 0.0);
    for (int r = 0; r < world; ++r) {
      recording.read(step, r, other);
      for (std::size_t i = 0; i < other.size(); ++i) exact[i] += double{other[i]};
    }
    for (double& value : exact) value /= world;
    add_step(recording, values, exact, ledger);
  }
  if (rank > 0) return;
  const auto steps = static_cast<double>(recording.steps() - options.skip);
  row.seconds_per_element = least / static_cast<double>(recording.numel());
  if (world == 1 || compressed == 0) return;
  // Uncompressed layers travel as float32, there and back.
  const double dense = 2.0 * (world - 1) / world *
                       static_cast<double>(recording.numel() - compressed) * sizeof(float);
  const double sent =
      static_cast<double>(averager.traffic().sent_bytes - sent_before) / steps - dense;
  const double all_bits = 8 * sent * world / (world - 1) / static_cast<double>(compressed);
  const double up = share_of_up(averager.state().shared_steps, bucket_of(recording), plan,
                                averager_options, *group);
  row.bits_up = all_bits * up;
  row.bits_down = all_bits * (1 - up);
}

}  // namespace

ReplayRow replay(const Recording& recording, const std::string& spec,
                 const ReplayOptions& options) {
  check(options.skip >= 0 && options.skip < recording.steps(), "of ", recording.steps(),
        " recorded steps ", options.skip, " cannot be skipped");
  std::vector<LayerInfo> infos;
  for (const RecordedLayer& layer : recording.layers()) infos.push_back({layer.name, layer.shape});
  CompressionOptions compression(spec);
  compression.min_numel = options.min_numel;
  compression.compress_1d = options.compress_1d;
  const comm::Plan plan = make_plan(infos, compression);

  ReplayRow row{.spec = spec, .strategy = options.strategy};
  Ledger ledger(recording);
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::mutex mutex;
  std::exception_ptr failure;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < recording.world(); ++rank) {
    threads.emplace_back([&, rank] {
      try {
        average_all(recording, plan, options,
                    comm::make_process_group("gloo", store, rank, recording.world(),
                                             {.hostname = "127.0.0.1"}),
                    ledger, row);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);

  double lost = 0, energy = 0, sum_lost = 0, sum_energy = 0;
  std::size_t at = 0;
  for (std::size_t l = 0; l < recording.layers().size(); ++l) {
    const RecordedLayer& layer = recording.layers()[l];
    double layer_lost = 0, layer_energy = 0;
    const auto end = at + static_cast<std::size_t>(layer.numel);
    for (; at < end; ++at) {
      layer_lost += std::pow(ledger.sum[at] - ledger.exact_sum[at], 2);
      layer_energy += ledger.exact_sum[at] * ledger.exact_sum[at];
    }
    const comm::LayerSetting& setting = plan.of(layer.name);
    row.layers.push_back(
        {.name = layer.name,
         .numel = layer.numel,
         .spec = setting.codec ? setting.codec->spec() : "none",
         .error = {ratio(ledger.lost[l], ledger.energy[l]), ratio(layer_lost, layer_energy)}});
    if (!setting.codec) continue;
    lost += ledger.lost[l];
    energy += ledger.energy[l];
    sum_lost += layer_lost;
    sum_energy += layer_energy;
  }
  row.error = {ratio(lost, energy), ratio(sum_lost, sum_energy)};
  return row;
}

}  // namespace thinwire::launch
