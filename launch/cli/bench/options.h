// What all forms of `thinwire bench` are told, with the flags of nccl-tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "thinwire/common/spec.h"

namespace CLI {
class App;
}

namespace thinwire::launch {

struct BenchOptions {
  std::int64_t min_bytes = 0;  // of the uncompressed tensor on one rank; 0: kDefaultBytes
  std::int64_t max_bytes = 0;  // 0: kDefaultBytes, or min_bytes where that is more
  double step_factor = 2;
  int iterations = 20;
  int warmup = 5;
  int check = 1;             // runs whose result is compared with the exact one
  std::vector<Spec> codecs;  // as given; "none" is always measured
  std::string backend = "auto";
  // A strategy's name; "default": what training does without a link model; "auto": what the
  // selector chooses with one.
  std::string strategy = "default";
  std::string link;  // file of the link model for "auto"; empty: measured at the start
  // all_reduce: recorded gradients, FILE of `thinwire replay`; empty: numbers made for the purpose.
  std::string data;
  std::string json;  // file, written by rank 0; empty: none

  static constexpr std::int64_t kDefaultBytes = std::int64_t{32} << 20;

  // min, min · factor, … up to max, cut to whole float32 elements. Throws InvalidArgument, naming
  // the flags, when min is above max.
  std::vector<std::int64_t> sizes() const;
};

// "4096", "64K", "32M", "1.5G": bytes, with K = 1024. Throws InvalidArgument for anything else,
// for less than 4 bytes and for more than 1T.
std::int64_t parse_size(const std::string& text);

// Adds -b -e -f -n -w -c --codec and --json. Wrong values throw CLI::ValidationError naming the
// flag.
void add_bench_flags(CLI::App& command, BenchOptions& options);
// Adds --backend.
void add_group_flags(CLI::App& command, BenchOptions& options);

}  // namespace thinwire::launch
