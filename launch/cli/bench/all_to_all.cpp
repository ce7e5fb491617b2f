#include <ATen/ops/empty.h>
#include <nlohmann/json.hpp>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/link/link_model.h"
#include "thinwire/comm/link/link_probe.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/launch/cli/bench/check.h"
#include "thinwire/launch/cli/bench/commands.h"
#include "thinwire/launch/cli/bench/data.h"
#include "thinwire/moe/dispatch/token_dispatcher.h"

namespace thinwire::launch {
namespace {

constexpr std::int64_t kWidth = 1024;

// Rows of one size: every rank sends `share` rows to each rank, itself included.
class AllToAllBench {
 public:
  AllToAllBench(const BenchGroup& group, const BenchOptions& options, BenchTable& table,
                std::int64_t share)
      : group_(group), options_(options), table_(table), share_(share) {}

  BenchRow backend_row(at::ScalarType type) {
    auto& processes = *group_.world().group();
    at::Tensor source = rows_of(rank(), 0, world() * share_).to(type);
    at::Tensor received = at::empty_like(source);
    std::vector<std::int64_t> even;
    const auto run = [&] {
      comm::wait(processes, processes.alltoall_base(received, source, even, even), "all_to_all", 0);
    };
    BenchRow row = row_of(type, "none", "backend");
    row.wire_bytes = row.dense_bytes;
    check(row, nullptr, type == at::kFloat ? 0 : 0x1p-8, [&] {
      run();
      return received.to(at::kFloat);
    });
    row.times = RunTimes(group_.time_runs(
        options_, [] {}, run));
    return report(row);
  }

  // By moe::TokenDispatcher, with one expert a rank. A row codec is its codec on every row alone.
  BenchRow dispatcher_row(const std::string& spec) {
    moe::DispatcherOptions dispatcher_options;
    dispatcher_options.dim = kWidth;
    dispatcher_options.experts = world();
    dispatcher_options.rows.dispatch = spec;
    dispatcher_options.chunks = 1;
    dispatcher_options.share_rows = false;
    dispatcher_options.seed = 1;
    const auto dispatcher = moe::TokenDispatcher::make(group_.world().group(), dispatcher_options);
    moe::RouteRequest request;
    request.expert_rows.assign(static_cast<std::size_t>(world()), share_);
    request.training = false;
    const auto routes = dispatcher->route(request);
    const at::Tensor source = rows_of(rank(), 0, world() * share_);
    at::Tensor received;
    const auto run = [&] {
      const auto ticket = dispatcher->start(*routes, 0, moe::Leg::kDispatch, source);
      received = dispatcher->finish(*routes, 0, moe::Leg::kDispatch, ticket);
    };
    const CodecPtr codec = make_codec(spec);
    BenchRow row = row_of(at::kFloat, spec, "rows");
    check(row, codec.get(), 0, [&] {
      run();
      return received;
    });
    const auto before = dispatcher->wire();
    row.times = RunTimes(group_.time_runs(
        options_, [] {}, run));
    const auto sent = dispatcher->wire() - before;
    row.wire_bytes = group_.largest(sent.total() / (options_.warmup + options_.iterations));
    return report(row);
  }

 private:
  int rank() const { return group_.world().rank(); }
  int world() const { return group_.world().size(); }

  // Rows of one rank's tensor.
  at::Tensor rows_of(int rank, std::int64_t first, std::int64_t count) const {
    at::Tensor rows = at::empty({count, kWidth}, at::kFloat);
    fill_bench_values(rank, kWidth, first * kWidth,
                      {rows.mutable_data_ptr<float>(), static_cast<std::size_t>(rows.numel())});
    return rows;
  }

  BenchRow row_of(at::ScalarType type, std::string codec, std::string strategy) const {
    const std::int64_t count = world() * share_ * kWidth;
    const std::int64_t bytes = count * static_cast<std::int64_t>(c10::elementSize(type));
    return {.collective = "all_to_all",
            .size = bytes,
            .count = count,
            .dtype = type == at::kFloat ? "float32" : "bfloat16",
            .codec = std::move(codec),
            .strategy = std::move(strategy),
            .dense_bytes = static_cast<std::int64_t>(
                comm::sent_bytes(comm::Collective::kAllToAll, static_cast<double>(bytes), world())),
            .times = RunTimes({1}),
            .rel_err = {},
            .problem = {}};
  }

  // Every rank knows the rows that the others sent to it.
  void check(BenchRow& row, const Codec* codec, double limit,
             const std::function<at::Tensor()>& result) {
    if (options_.check == 0) return;
    Reference reference;
    reference.limit = limit;
    for (int sender = 0; sender < world(); ++sender) {
      const at::Tensor rows = rows_of(sender, rank() * share_, share_);
      const std::span<const float> exact(rows.const_data_ptr<float>(),
                                         static_cast<std::size_t>(rows.numel()));
      reference.exact.insert(reference.exact.end(), exact.begin(), exact.end());
      reference.expected.insert(reference.expected.end(), exact.begin(), exact.end());
    }
    if (codec != nullptr) code_rows(*codec, reference);
    for (int i = 0; i < options_.check; ++i) {
      const at::Tensor out = result().contiguous();
      const CheckedResult checked =
          compare({out.const_data_ptr<float>(), static_cast<std::size_t>(out.numel())}, reference);
      std::array<double, 2> worst = {checked.rel_err, checked.problem.empty() ? 0.0 : 1.0};
      comm::take_largest(*group_.world().group(), worst);
      row.rel_err = std::max(row.rel_err.value_or(0), worst[0]);
      if (worst[1] > 0 && row.problem.empty()) {
        row.problem = checked.problem.empty() ? "another rank has wrong rows" : checked.problem;
      }
    }
  }

  // Makes of the rows in `expected` what the codec leaves of each.
  static void code_rows(const Codec& codec, Reference& reference) {
    reference.random = draws_random_numbers(codec);
    const std::size_t most = codec.max_compressed_bytes(kWidth, DType::kFloat32);
    std::vector<std::byte> payload(most);
    reference.payload_bytes = 0;
    const std::span<float> values(reference.expected);
    for (std::size_t at = 0; at < values.size(); at += kWidth) {
      const auto row = values.subspan(at, kWidth);
      const RandomKey key = {.seed = 3, .first_element = at};
      const std::size_t bytes = codec.compress(view_of(std::span<const float>(row)), key, payload);
      codec.decompress(std::span(payload).first(bytes), key, view_of(row), WriteMode::kAssign);
      reference.payload_bytes += bytes;
    }
  }

  const BenchRow& report(const BenchRow& row) {
    if (group_.first()) table_.add(row);
    return row;
  }

  const BenchGroup& group_;
  const BenchOptions& options_;
  BenchTable& table_;
  std::int64_t share_;
};

}  // namespace

std::vector<BenchRow> bench_all_to_all(const BenchGroup& group, const BenchOptions& options,
                                       BenchTable& table) {
  const auto sizes = options.sizes();
  if (group.first()) table.header();
  std::vector<BenchRow> rows;
  for (const std::int64_t bytes : sizes) {
    const std::int64_t share = bytes / 4 / kWidth / group.world().size();
    check(share > 0, "--minbytes ", bytes, " is less than one row of ", kWidth,
          " float32 for each of ", group.world().size(), " ranks");
    AllToAllBench bench(group, options, table, share);
    rows.push_back(bench.backend_row(at::kFloat));
    rows.push_back(bench.backend_row(at::kBFloat16));
    for (const Spec& spec : options.codecs) rows.push_back(bench.dispatcher_row(spec.str()));
  }
  return rows;
}

}  // namespace thinwire::launch
