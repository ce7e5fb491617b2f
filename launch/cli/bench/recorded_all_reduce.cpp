#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"
#include "thinwire/launch/cli/bench/all_reduce_rows.h"
#include "thinwire/launch/cli/bench/recorded_data.h"
#include "thinwire/torch_ext/compression/compression.h"

namespace thinwire::launch {
namespace {

std::span<const float> recorded_floats(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
}

// Squares, over the runs that are looked at.
struct RunErrors {
  double lost = 0, energy = 0;              // of the layers that a row is about
  double other_lost = 0, other_energy = 0;  // of those that the row leaves uncompressed
  bool finite = true;
};

double relative(double lost, double energy) {
  return lost == 0 ? 0 : std::sqrt(lost / energy);
}

// All rows of one size.
class RecordedBench {
 public:
  RecordedBench(const BenchGroup& group, const BenchOptions& options, const RecordedData& data,
                const comm::AveragerOptions& averager)
      : group_(group), options_(options), data_(data), averager_(averager) {
    std::int64_t offset = 0;
    for (const RecordedLayer& layer : data.layers()) {
      layers_.push_back({layer.name, offset, layer.shape});
      infos_.push_back({layer.name, layer.shape});
      offset += layer.numel;
    }
  }

  BenchRow backend_row(at::ScalarType type) const {
    at::Tensor values = at::empty({data_.numel()}, at::kFloat);
    std::vector<at::Tensor> tensors = {at::empty({data_.numel()}, type)};
    auto& processes = *group_.world().group();
    const int world = group_.world().size();
    BenchRow row = all_reduce_row(group_, data_.numel(), type, "none", "backend");
    row.wire_bytes = row.dense_bytes;
    measure(
        row, {}, type == at::kFloat ? 1e-6 : world * 0x1p-8,
        [&](std::int64_t run) {
          read(run, values);
          tensors[0].copy_(values);
        },
        [&] { comm::wait(processes, processes.allreduce(tensors), "all_reduce", 0); },
        [&] { return tensors[0].to(at::kFloat).div_(world); });
    return row;
  }

  BenchRow averager_row(const std::string& codec) const {
    const comm::Plan plan = make_plan(infos_, CompressionOptions(codec)).plan;
    comm::Bucket bucket{0, at::empty({data_.numel()}, at::kFloat), layers_};
    const auto ways = comm::choose_strategies(bucket, plan, 1, averager_, group_.world().backend(),
                                              group_.world().size());
    std::vector<std::size_t> compressed;
    for (std::size_t l = 0; l < ways.size(); ++l) {
      if (ways[l].codec) compressed.push_back(l);
    }
    const comm::LayerStrategy& way = ways[compressed.empty() ? 0 : compressed.front()];
    BenchRow row = all_reduce_row(group_, data_.numel(), at::kFloat, codec,
                                  name_of_way(way, averager_.link != nullptr));
    comm::BucketAverager averager(group_.world().group(), averager_);
    std::int64_t step = 0;
    measure(
        row, compressed, 1e-6, [&](std::int64_t run) { read(run, bucket.buffer); },
        [&] { averager.average(bucket, plan, ++step); }, [&] { return bucket.buffer; });
    const auto sent = static_cast<std::int64_t>(averager.traffic().sent_bytes);
    row.wire_bytes = group_.largest(sent / (options_.warmup + options_.iterations));
    return row;
  }

 private:
  void read(std::int64_t run, at::Tensor& into) const {
    data_.read(run, group_.world().rank(),
               {into.mutable_data_ptr<float>(), static_cast<std::size_t>(into.numel())});
  }

  // Times the runs; the results of the last ones are compared with the exact means. `compressed`
  // are the layers that may be off, by any error; where there are none, and in all others, the
  // error is at most `tolerance`.
  void measure(BenchRow& row, const std::vector<std::size_t>& compressed, double tolerance,
               const std::function<void(std::int64_t)>& prepare, const std::function<void()>& run,
               const std::function<at::Tensor()>& result) const {
    const std::int64_t runs = options_.warmup + options_.iterations;
    const std::int64_t looked_at = std::min(options_.check, options_.iterations);
    std::int64_t next = 0;
    RunErrors errors;
    const auto look = [&] {
      if (next <= runs - looked_at) return;
      const at::Tensor out = result();
      if (row.problem.empty() && !group_.equal_everywhere(out)) {
        row.problem = "the ranks have different results";
      }
      if (group_.first()) add(errors, recorded_floats(out), next - 1, compressed);
    };
    row.times = RunTimes(group_.time_runs(
        options_,
        [&] {
          look();
          prepare(next++);
        },
        run));
    look();
    if (looked_at == 0) return;
    row.rel_err = relative(errors.lost, errors.energy);
    row.problem = group_.tell_all(
        !row.problem.empty() ? row.problem : problem_of(errors, compressed.empty(), tolerance));
  }

  void add(RunErrors& errors, std::span<const float> out, std::int64_t run,
           const std::vector<std::size_t>& compressed) const {
    const auto exact = data_.exact_mean(run, group_.world().size());
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      const bool counts = compressed.empty() || std::ranges::binary_search(compressed, l);
      double& lost = counts ? errors.lost : errors.other_lost;
      double& energy = counts ? errors.energy : errors.other_energy;
      const auto begin = static_cast<std::size_t>(layers_[l].offset);
      const auto end = begin + static_cast<std::size_t>(data_.layers()[l].numel);
      for (std::size_t i = begin; i < end; ++i) {
        const double difference = double{out[i]} - exact[i];
        lost += difference * difference;
        energy += exact[i] * exact[i];
      }
    }
    errors.finite = errors.finite && std::isfinite(errors.lost + errors.other_lost);
  }

  static std::string problem_of(const RunErrors& errors, bool exact, double tolerance) {
    if (!errors.finite) return "the result is not finite";
    const double off = exact ? relative(errors.lost, errors.energy)
                             : relative(errors.other_lost, errors.other_energy);
    if (off <= tolerance) return "";
    return concat(exact ? "" : "its uncompressed layers are ", "off the exact mean by ", off,
                  ", at most ", tolerance, " is right");
  }

  const BenchGroup& group_;
  const BenchOptions& options_;
  const RecordedData& data_;
  const comm::AveragerOptions& averager_;
  std::vector<comm::BucketLayer> layers_;
  std::vector<LayerInfo> infos_;
};

}  // namespace

void bench_recorded(const BenchGroup& group, const BenchOptions& options,
                    const Recording& recording, const comm::AveragerOptions& averager,
                    std::int64_t bytes, BenchTable& table, std::vector<BenchRow>& rows) {
  const RecordedData data(recording, bytes);
  const RecordedBench bench(group, options, data, averager);
  const auto report = [&](BenchRow row) {
    if (group.first()) table.add(row);
    rows.push_back(std::move(row));
  };
  report(bench.backend_row(at::kFloat));
  report(bench.backend_row(at::kBFloat16));
  report(bench.averager_row("none"));
  for (const Spec& spec : options.codecs) report(bench.averager_row(spec.str()));
}

}  // namespace thinwire::launch
