// The ranks of a benchmark: their clock, and what they have to agree on.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "thinwire/launch/cli/bench/options.h"
#include "thinwire/launch/cli/bench/report.h"
#include "thinwire/launch/world.h"

namespace thinwire::launch {

// One job, measuring. Everything but first() is collective. Not thread-safe.
class BenchGroup {
 public:
  // Joins the job. Throws, on every rank, InvalidArgument for a backend that takes no tensors of
  // the host, FileError where rank 0 cannot write `output` (none if empty).
  BenchGroup(const std::string& backend, const std::string& output);

  const World& world() const { return world_; }
  bool first() const { return world_.rank() == 0; }
  int hosts() const;

  // Calls `prepare` and the timed `run` warmup + iterations times, the ranks starting each run
  // together; of every timed run, the time of the slowest rank.
  std::vector<double> time_runs(const BenchOptions& options, const std::function<void()>& prepare,
                                const std::function<void()>& run) const;

  // Rank 0's text on every rank.
  std::string tell_all(const std::string& text) const;
  // Whether all ranks have the same bytes.
  bool equal_everywhere(const at::Tensor& tensor) const;
  // The largest of the ranks' values.
  std::int64_t largest(std::int64_t value) const;

  // What every benchmark says of itself: version, backend, launcher, world, hosts, threads, and
  // options.
  nlohmann::ordered_json context(const BenchOptions& options) const;

  // Rank 0 writes the JSON file, if one is asked for. Every rank throws Error if rows are wrong.
  void finish(const BenchOptions& options, const nlohmann::ordered_json& context,
              const std::vector<BenchRow>& rows) const;

 private:
  World world_;
};

// Where rank 0 writes a file at the end: throws FileError on every rank, before anything is
// measured, where it cannot. Collective.
void check_output_file(const World& world, const std::string& path);

}  // namespace thinwire::launch
