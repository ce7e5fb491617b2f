#include "thinwire/launch/cli/bench/group.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/link/link_probe.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/compressors/allocation/plan_file.h"

namespace thinwire::launch {

BenchGroup::BenchGroup(const std::string& backend, const std::string& output)
    : world_(init({.backend = backend})) {
  check(world_.backend() != "nccl",
        "benchmarks send tensors of the host, which nccl does not take; use --backend gloo or mpi");
  check_output_file(world_, output);
}

int BenchGroup::hosts() const {
  return static_cast<int>(
      std::set<std::string>(world_.hosts().begin(), world_.hosts().end()).size());
}

std::vector<double> BenchGroup::time_runs(const BenchOptions& options,
                                          const std::function<void()>& prepare,
                                          const std::function<void()>& run) const {
  std::vector<double> seconds;
  for (int i = 0; i < options.warmup + options.iterations; ++i) {
    prepare();
    largest(0);  // starts all ranks together
    const auto begin = Clock::now();
    run();
    const double time = seconds_since(begin);
    if (i >= options.warmup) seconds.push_back(std::max(time, 1e-9));
  }
  comm::take_largest(*world_.group(), seconds);
  return seconds;
}

std::string BenchGroup::tell_all(const std::string& text) const {
  std::string told = text;
  told.resize(
      static_cast<std::size_t>(largest(first() ? static_cast<std::int64_t>(text.size()) : 0)));
  if (world_.size() == 1 || told.empty()) return told;
  // A tensor of its own: where another rank fails, wait() leaves before the backend has finished
  // with the memory.
  std::vector<at::Tensor> tensors = {
      at::empty({static_cast<std::int64_t>(told.size())}, at::kByte)};
  std::memcpy(tensors[0].mutable_data_ptr(), told.data(), told.size());
  comm::wait(*world_.group(), world_.group()->broadcast(tensors), "broadcast", 0);
  std::memcpy(told.data(), tensors[0].const_data_ptr(), told.size());
  return told;
}

bool BenchGroup::equal_everywhere(const at::Tensor& tensor) const {
  const std::uint32_t checksum = crc32c(
      std::as_bytes(std::span(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes())));
  std::array<double, 2> bounds = {static_cast<double>(checksum), -static_cast<double>(checksum)};
  comm::take_largest(*world_.group(), bounds);
  return bounds[0] == -bounds[1];
}

std::int64_t BenchGroup::largest(std::int64_t value) const {
  std::array<double, 1> values = {static_cast<double>(value)};
  comm::take_largest(*world_.group(), values);
  return static_cast<std::int64_t>(values[0]);
}

nlohmann::ordered_json BenchGroup::context(const BenchOptions& options) const {
  return {{"thinwire", THINWIRE_VERSION},
          {"backend", world_.backend()},
          {"launcher", name_of(world_.ranks().launcher)},
          {"world", world_.size()},
          {"hosts", world_.hosts()},
          {"threads", at::get_num_threads()},
          {"iterations", options.iterations},
          {"warmup", options.warmup},
          {"checked", options.check},
          {"strategy", options.strategy}};
}

void BenchGroup::finish(const BenchOptions& options, const nlohmann::ordered_json& context,
                        const std::vector<BenchRow>& rows) const {
  if (first() && !options.json.empty()) {
    lgreco::write_text_file(options.json, json_of(context, rows).dump(2) + "\n");
  }
  std::string wrong;
  for (const BenchRow& row : rows) {
    if (row.problem.empty()) continue;
    wrong += concat(wrong.empty() ? "" : "; ", row.collective, " of ", row.size, " bytes with ",
                    row.codec, ": ", row.problem);
  }
  if (!wrong.empty()) throw Error("wrong results: " + wrong);
}

void check_output_file(const World& world, const std::string& path) {
  bool writable = true;
  if (world.rank() == 0 && !path.empty()) {
    // Beside the file, so that a run which fails leaves an older one as it was.
    const std::string trial = path + ".trial";
    writable = std::ofstream(trial).good();
    std::remove(trial.c_str());
  }
  std::array<double, 1> failed = {writable ? 0.0 : 1.0};
  comm::take_largest(*world.group(), failed);
  if (failed[0] > 0) throw FileError(concat("rank 0 cannot write '", path, "'"));
}

}  // namespace thinwire::launch
