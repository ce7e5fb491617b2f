#include "thinwire/launch/advise/job_options.h"

#include <CLI/CLI.hpp>
#include <charconv>

#include "thinwire/common/error.h"

namespace thinwire::launch {

double parse_rate(const std::string& text) {
  double number = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string unit(end, text.data() + text.size());
  const double factor = unit == "gbit"   ? 1e9
                        : unit == "mbit" ? 1e6
                        : unit == "kbit" ? 1e3
                        : unit == "bit"  ? 1
                                         : 0;
  check(code == std::errc() && number > 0 && factor > 0, "the rate '", text,
        "' is none; write 25mbit, 1gbit, or so many kbit or bit, a second");
  return number * factor;
}

AdvisedJob JobOptions::job() const {
  AdvisedJob job{.hosts = hosts, .burst_bytes = burst, .straggler = straggler};
  if (!rate.empty()) job.rate = parse_rate(rate);
  if (latency >= 0) job.latency = latency;
  if (cores > 0) job.cores = cores;
  job.route = route == "tree" ? comm::Route::kTree : comm::Route::kRing;
  if (!link.empty()) job.link = comm::read_link_model(link);
  return job;
}

void add_job_options(CLI::App& command, JobOptions& options) {
  command.add_option("--hosts", options.hosts, "Hosts, each with as many ranks as the log's have")
      ->check(CLI::Range(1, 1 << 20));
  command
      .add_option("--link", options.link, "File of `thinwire link` in place of the log's network")
      ->type_name("FILE");
  command.add_option("--rate", options.rate, "Rate of each host's link: 25mbit, 1gbit")
      ->type_name("RATE");
  command.add_option("--latency", options.latency, "Seconds of one message")
      ->check(CLI::NonNegativeNumber)
      ->type_name("SECONDS");
  command
      .add_option("--cores", options.cores,
                  "Processors of a rank for each that its training keeps busy; at 1 coding "
                  "takes from the training (default: by the log)")
      ->check(CLI::PositiveNumber);
  command
      .add_option("--burst", options.burst,
                  "Bytes that a link lets through at once after a pause, as a token bucket does")
      ->check(CLI::NonNegativeNumber)
      ->type_name("BYTES");
  command
      .add_option("--route", options.route,
                  "How another number of ranks adds and gathers: ring (Gloo) or tree")
      ->check(CLI::IsMember({"ring", "tree"}))
      ->capture_default_str();
  command
      .add_option("--straggler", options.straggler,
                  "Part by which the slowest rank computes longer, 0.1: a tenth")
      ->check(CLI::Range(0.0, 100.0));
}

}  // namespace thinwire::launch
