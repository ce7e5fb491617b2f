#include "thinwire/launch/cli/bench/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "thinwire/common/error.h"

namespace thinwire::launch {
namespace {

std::string padded(const std::string& text, int width) {
  const auto missing = width - static_cast<int>(text.size());
  return missing > 0 ? std::string(static_cast<std::size_t>(missing), ' ') + text : text;
}

}  // namespace

RunTimes::RunTimes(std::vector<double> seconds) : sorted_(std::move(seconds)) {
  check(!sorted_.empty(), "a benchmark's row needs at least one timed run");
  std::sort(sorted_.begin(), sorted_.end());
}

double RunTimes::quantile(double share) const {
  const double rank = std::ceil(share * static_cast<double>(sorted_.size()));
  return sorted_[std::min(static_cast<std::size_t>(std::max(rank, 1.0)), sorted_.size()) - 1];
}

double BenchRow::ratio() const {
  if (wire_bytes == 0) return 1;
  return static_cast<double>(dense_bytes) / static_cast<double>(wire_bytes);
}

double BenchRow::algbw() const {
  return static_cast<double>(size) / times.p50() / 1e9;
}

double BenchRow::wirebw() const {
  return static_cast<double>(wire_bytes) / times.p50() / 1e9;
}

BenchTable::BenchTable(std::ostream& out, const std::vector<std::string>& specs)
    : out_(out), codec_width_(18) {
  for (const std::string& spec : specs) {
    codec_width_ = std::max(codec_width_, static_cast<int>(spec.size()));
  }
}

void BenchTable::header() {
  const std::string codec(static_cast<std::size_t>(codec_width_ - 5), ' ');
  const std::string blank(static_cast<std::size_t>(codec_width_), ' ');
  out_ << "#\n#       size         count      type   codec" << codec
       << "    wire(B)   ratio        time    algbw   wirebw    rel_err   strategy\n"
       << "#        (B)    (elements)               " << blank
       << "                        (us)   (GB/s)   (GB/s)\n";
}

void BenchTable::add(const BenchRow& row) {
  std::string codec = row.codec;
  codec.resize(std::max(codec.size(), static_cast<std::size_t>(codec_width_)), ' ');
  out_ << padded(std::to_string(row.size), 12) << padded(std::to_string(row.count), 14)
       << padded(row.dtype, 10) << "   " << codec << padded(std::to_string(row.wire_bytes), 11)
       << padded(printed("%.2f", row.ratio()), 8)
       << padded(printed("%.1f", row.times.p50() * 1e6), 12)
       << padded(printed("%.3f", row.algbw()), 9) << padded(printed("%.3f", row.wirebw()), 9)
       << padded(row.rel_err ? printed("%.3e", *row.rel_err) : "N/A", 11) << "   " << row.strategy
       << (row.problem.empty() ? "" : "   WRONG: " + row.problem) << std::endl;
}

void BenchTable::note(const std::string& text) {
  out_ << "# " << text << std::endl;
}

std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

nlohmann::ordered_json json_of(const nlohmann::ordered_json& context,
                               const std::vector<BenchRow>& rows) {
  using Json = nlohmann::ordered_json;
  Json list = Json::array();
  for (const BenchRow& row : rows) {
    const auto microseconds = [](double seconds) { return seconds * 1e6; };
    list.push_back({{"collective", row.collective},
                    {"size", row.size},
                    {"count", row.count},
                    {"dtype", row.dtype},
                    {"codec", row.codec},
                    {"strategy", row.strategy},
                    {"wire_bytes", row.wire_bytes},
                    {"ratio", row.ratio()},
                    {"time_us",
                     {{"min", microseconds(row.times.min())},
                      {"p50", microseconds(row.times.p50())},
                      {"p99", microseconds(row.times.p99())},
                      {"max", microseconds(row.times.max())}}},
                    {"algbw", row.algbw()},
                    {"wirebw", row.wirebw()},
                    {"rel_err", row.rel_err ? Json(*row.rel_err) : Json()}});
  }
  return {{"context", context}, {"rows", std::move(list)}};
}

}  // namespace thinwire::launch
