// The options by which `thinwire advise` and `thinwire simulate` are told of another network.
#pragma once

#include <string>

#include "thinwire/launch/advise/advice.h"

namespace CLI {
class App;
}

namespace thinwire::launch {

struct JobOptions {
  int hosts = 0;  // 0: the log's
  std::string link, rate, route = "ring";
  double latency = -1, cores = -1;  // negative: the log's
  double burst = 0, straggler = 0;

  // Reads the link file. Throws FileError, and InvalidArgument for a rate that is none.
  AdvisedJob job() const;
};

// --hosts, --link, --rate, --latency, --cores, --burst, --route, --straggler.
void add_job_options(CLI::App& command, JobOptions& options);

// Bits a second of "25mbit", "1gbit", "1.5gbit", "100000bit". Throws InvalidArgument.
double parse_rate(const std::string& text);

}  // namespace thinwire::launch
