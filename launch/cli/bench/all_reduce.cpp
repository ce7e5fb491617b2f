#include <ATen/ops/empty.h>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "thinwire/comm/average/selector.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/link/link_probe.h"
#include "thinwire/common/error.h"
#include "thinwire/launch/cli/bench/all_reduce_rows.h"
#include "thinwire/launch/cli/bench/check.h"
#include "thinwire/launch/cli/bench/commands.h"
#include "thinwire/launch/cli/bench/data.h"
#include "thinwire/launch/cli/bench/link_measurement.h"
#include "thinwire/launch/cli/bench/recorded_data.h"

namespace thinwire::launch {
namespace {

constexpr const char* kLayer = "tensor";

std::span<float> floats_of(at::Tensor& tensor) {
  return {tensor.mutable_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
}

// One tensor size, measured with every codec.
class AllReduceBench {
 public:
  AllReduceBench(const BenchGroup& group, const BenchOptions& options, BenchTable& table,
                 comm::AveragerOptions averager)
      : group_(group), options_(options), table_(table), averager_(std::move(averager)) {}

  void measure(std::int64_t bytes, std::vector<BenchRow>& rows) {
    const std::vector<std::int64_t> flat = {bytes / 4};
    rows.push_back(backend_row(flat, at::kFloat));
    rows.push_back(backend_row(flat, at::kBFloat16));
    rows.push_back(averager_row(flat, "none"));
    for (const Spec& spec : options_.codecs) {
      std::vector<std::int64_t> shape = flat;
      if (spec.name == "powersgd") shape = {square_side(flat[0]), square_side(flat[0])};
      rows.push_back(averager_row(shape, spec.str()));
    }
  }

 private:
  // This rank's values as a tensor of that shape.
  at::Tensor values(const std::vector<std::int64_t>& shape) const {
    at::Tensor tensor = at::empty(shape, at::kFloat).view(-1);
    fill_bench_values(group_.world().rank(), cols_of(shape), 0, floats_of(tensor));
    return tensor;
  }
  // A flat tensor has the values of the matrix that powersgd would see.
  static std::int64_t cols_of(const std::vector<std::int64_t>& shape) {
    return shape.size() == 2 ? shape[1] : std::max<std::int64_t>(square_side(shape[0]), 1);
  }

  BenchRow backend_row(const std::vector<std::int64_t>& shape, at::ScalarType type) {
    const at::Tensor source = values(shape).to(type);
    std::vector<at::Tensor> tensors = {at::empty_like(source)};
    auto& processes = *group_.world().group();
    const auto prepare = [&] { tensors[0].copy_(source); };
    const auto run = [&] { comm::wait(processes, processes.allreduce(tensors), "all_reduce", 0); };
    const int world = group_.world().size();
    // Every addition of bfloat16 rounds to 8 bits.
    const double tolerance = type == at::kFloat ? 1e-6 : world * 0x1p-8;
    BenchRow row = row_of(shape, type, "none", "backend");
    row.wire_bytes = row.dense_bytes;
    CheckedTensor expected;
    expected.tolerance = tolerance;
    check(row, shape, expected, [&] {
      prepare();
      run();
      return tensors[0].to(at::kFloat).div_(world);
    });
    row.times = RunTimes(group_.time_runs(options_, prepare, run));
    return report(row);
  }

  BenchRow averager_row(const std::vector<std::int64_t>& shape, const std::string& codec) {
    const at::Tensor source = values(shape);
    comm::Bucket bucket{0, at::empty_like(source), {{kLayer, 0, shape}}};
    comm::Plan plan;
    plan.set(kLayer, comm::parse_layer_setting(codec));
    const comm::LayerStrategy way = comm::choose_strategies(
        bucket, plan, 1, averager_, group_.world().backend(), group_.world().size())[0];
    auto averager = make_averager();
    std::int64_t step = 0;
    const auto prepare = [&] { bucket.buffer.copy_(source); };
    const auto run = [&] { averager->average(bucket, plan, ++step); };

    BenchRow row = row_of(shape, at::kFloat, codec, name_of_way(way, averager_.link != nullptr));
    CheckedTensor expected;
    expected.codec = way.codec.get();
    expected.expectation = expectation_of(way, plan.of(kLayer).uses_second_residual());
    check(row, shape, expected, [&] {
      averager = make_averager();  // without what earlier runs left behind
      prepare();
      run();
      return bucket.buffer;
    });
    const auto before = averager->traffic().sent_bytes;
    row.times = RunTimes(group_.time_runs(options_, prepare, run));
    const auto sent = static_cast<std::int64_t>(averager->traffic().sent_bytes - before);
    row.wire_bytes = group_.largest(sent / (options_.warmup + options_.iterations));
    return report(row);
  }

  std::unique_ptr<comm::BucketAverager> make_averager() const {
    return std::make_unique<comm::BucketAverager>(group_.world().group(), averager_);
  }

  static Expectation expectation_of(const comm::LayerStrategy& way, bool owners_keep) {
    if (!way.codec) return Expectation::kExact;
    const bool slots = way.codec->facts().form == CodecFacts::Form::kSlots;
    switch (way.strategy) {
      case comm::Strategy::kScatterReduce:
        return slots ? Expectation::kSlots : Expectation::kSecondCode;
      case comm::Strategy::kSparse:
        return owners_keep ? Expectation::kLargest : Expectation::kMean;
      case comm::Strategy::kLowRank:
        return Expectation::kProjection;
      case comm::Strategy::kHierarchical:
        return Expectation::kHosts;
      default:
        return Expectation::kMean;
    }
  }

  BenchRow row_of(const std::vector<std::int64_t>& shape, at::ScalarType type, std::string codec,
                  std::string strategy) const {
    return all_reduce_row(group_, c10::multiply_integers(shape), type, std::move(codec),
                          std::move(strategy));
  }

  // Compares what `result` gives with what it must be: all ranks the same, rank 0 the right values.
  void check(BenchRow& row, const std::vector<std::int64_t>& shape, CheckedTensor tensor,
             const std::function<at::Tensor()>& result) {
    tensor.world = group_.world().size();
    tensor.numel = row.count;
    tensor.cols = cols_of(shape);
    tensor.shape = shape;
    tensor.host_of_rank = averager_.host_of_rank;
    for (int i = 0; i < options_.check; ++i) {
      at::Tensor out = result();
      std::string problem;
      if (!group_.equal_everywhere(out)) problem = "the ranks have different results";
      if (group_.first()) {
        const CheckedResult checked = check_bench_mean(floats_of(out), tensor);
        row.rel_err = std::max(row.rel_err.value_or(0), checked.rel_err);
        if (problem.empty()) problem = checked.problem;
      }
      problem = group_.tell_all(problem);
      if (row.problem.empty()) row.problem = problem;
    }
  }

  const BenchRow& report(const BenchRow& row) {
    if (group_.first()) table_.add(row);
    return row;
  }

  const BenchGroup& group_;
  const BenchOptions& options_;
  BenchTable& table_;
  const comm::AveragerOptions averager_;
};

// Hosts by numbers, in order of their first rank.
std::vector<int> host_numbers(const std::vector<std::string>& hosts) {
  std::map<std::string, int> numbers;
  std::vector<int> result;
  for (const std::string& host : hosts) {
    result.push_back(numbers.try_emplace(host, static_cast<int>(numbers.size())).first->second);
  }
  return result;
}

// The model that "auto" chooses by: from a file, or measured now.
comm::LinkModel link_model_for(const BenchGroup& group, const BenchOptions& options) {
  const World& world = group.world();
  if (!options.link.empty()) {
    comm::LinkModel model = comm::read_link_model(options.link);
    check(model.world == world.size(), options.link, " was measured with ", model.world,
          " ranks, this job has ", world.size());
    model.backend(world.backend());
    return model;
  }
  LinkMeasurement measurement;
  // Pairs matter to the hierarchical way alone.
  measurement.probe.pairs = group.hosts() > 1 && group.hosts() < world.size();
  for (const Spec& spec : options.codecs) {
    const auto setting = comm::parse_layer_setting(spec.str());
    if (setting.codec) measurement.codecs.push_back(setting.codec);
  }
  return measure_link(world, measurement);
}

// Of all ranks, which must have recorded the same.
Recording recording_of(const BenchGroup& group, const std::string& file) {
  std::optional<Recording> recording;
  comm::agree_on_result(*group.world().group(), "bench data", "the gradients of --data", [&] {
    recording.emplace(file);
    return describe(*recording, group.world().size());
  });
  return *std::move(recording);
}

}  // namespace

BenchRow all_reduce_row(const BenchGroup& group, std::int64_t numel, at::ScalarType type,
                        std::string codec, std::string strategy) {
  const std::int64_t bytes = numel * static_cast<std::int64_t>(c10::elementSize(type));
  const std::uint64_t dense = comm::ring_bytes(bytes, group.world().size());
  return {.collective = "all_reduce",
          .size = bytes,
          .count = numel,
          .dtype = type == at::kFloat ? "float32" : "bfloat16",
          .codec = std::move(codec),
          .strategy = std::move(strategy),
          .dense_bytes = static_cast<std::int64_t>(dense),
          .times = RunTimes({1}),
          .rel_err = {},
          .problem = {}};
}

std::string name_of_way(const comm::LayerStrategy& way, bool automatic) {
  const bool refused = automatic && !way.codec;
  return concat(automatic ? "auto:" : "", refused ? "none" : comm::name_of(way.strategy));
}

std::int64_t square_side(std::int64_t numel) {
  return static_cast<std::int64_t>(std::sqrt(static_cast<double>(numel)));
}

std::vector<BenchRow> bench_all_reduce(const BenchGroup& group, const BenchOptions& options,
                                       BenchTable& table, nlohmann::ordered_json& context) {
  const auto sizes = options.sizes();
  std::optional<comm::LinkModel> link;
  if (options.strategy == "auto" && group.world().size() > 1) link = link_model_for(group, options);
  std::optional<Recording> recording;
  if (!options.data.empty()) {
    recording = recording_of(group, options.data);
    context["data"] = {{"file", options.data},
                       {"steps", recording->steps()},
                       {"ranks", recording->world()},
                       {"numel", recording->numel()}};
    if (group.first()) {
      table.note(concat("gradients of ", options.data, ": ", recording->steps(), " steps of ",
                        recording->numel(), " elements, as many copies as fit the size"));
    }
  }
  if (link) context["link"] = nlohmann::ordered_json::parse(comm::to_json(*link));
  if (group.first()) table.header();
  std::vector<BenchRow> rows;
  comm::AveragerOptions averager;
  averager.seed = 1;
  averager.host_of_rank = host_numbers(group.world().hosts());
  averager.link = link ? &*link : nullptr;
  if (options.strategy != "default" && options.strategy != "auto") {
    averager.strategy = comm::parse_strategy(options.strategy);
  }
  if (recording) {
    for (const std::int64_t bytes : sizes) {
      bench_recorded(group, options, *recording, averager, bytes, table, rows);
    }
    return rows;
  }
  AllReduceBench bench(group, options, table, std::move(averager));
  for (const std::int64_t bytes : sizes) bench.measure(bytes, rows);
  return rows;
}

}  // namespace thinwire::launch
