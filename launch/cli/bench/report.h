// The rows of a benchmark: the table that people read and the JSON that programs read.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace thinwire::launch {

// Seconds of the timed runs of one row, in ascending order.
class RunTimes {
 public:
  // Throws InvalidArgument where there is none.
  explicit RunTimes(std::vector<double> seconds);

  double min() const { return sorted_.front(); }
  double max() const { return sorted_.back(); }
  double p50() const { return quantile(0.5); }
  double p99() const { return quantile(0.99); }
  // The smallest time that at least this share of the runs does not exceed.
  double quantile(double share) const;

 private:
  std::vector<double> sorted_;
};

struct BenchRow {
  std::string collective;        // "all_reduce", "all_to_all", "compress", "decompress"
  std::int64_t size = 0;         // bytes of the uncompressed tensor on one rank
  std::int64_t count = 0;        // its elements
  std::string dtype;             // "float32"
  std::string codec;             // spec as it was given, "none" for uncompressed rows
  std::string strategy;          // how it was exchanged
  std::int64_t wire_bytes = 0;   // that one rank sends, frames included
  std::int64_t dense_bytes = 0;  // that it would send uncompressed, in the row's dtype
  RunTimes times;
  std::optional<double> rel_err;  // none: not checked
  std::string problem;            // why the result is wrong; empty: it is right

  double ratio() const;   // dense_bytes / wire_bytes; 1 where nothing is sent
  double algbw() const;   // size / p50, in 1e9 bytes a second
  double wirebw() const;  // wire_bytes / p50, likewise
};

// Prints rows as they come, in the columns
//   size count type codec wire(B) ratio time algbw wirebw rel_err strategy
class BenchTable {
 public:
  // `specs` are the codecs to come, for the width of their column.
  BenchTable(std::ostream& out, const std::vector<std::string>& specs);
  void header();
  void add(const BenchRow& row);
  void note(const std::string& text);  // a line of its own, after "# "

 private:
  std::ostream& out_;
  int codec_width_;
};

// A number in a format of printf.
std::string printed(const char* format, double value);

// {"context":…,"rows":[{"collective","size","count","dtype","codec","strategy","wire_bytes","ratio",
// "time_us":{"min","p50","p99","max"},"algbw","wirebw","rel_err"}]}; rel_err is null where the
// result was not checked.
nlohmann::ordered_json json_of(const nlohmann::ordered_json& context,
                               const std::vector<BenchRow>& rows);

}  // namespace thinwire::launch
