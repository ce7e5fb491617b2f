// The log of a training run, as the examples write it with --log: JSON lines, each an object with
// an "event". Lines of events that are not known here are passed over.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "thinwire/comm/link/link_model.h"

namespace thinwire::launch {

// Numbers are absent where a line does not have them.
struct RunPoint {
  std::int64_t step = 0;
  double seconds = 0;                     // of training so far
  std::optional<double> sent_bytes = {};  // by one rank so far
  std::optional<double> train_loss = {}, test_loss = {}, accuracy = {};
};

struct LoggedLayer {
  std::string name = {};
  std::vector<std::int64_t> shape = {};
  std::string setting = {};
  double bytes = 0, payload_bytes = 0;  // of one rank and step
  std::optional<double> error = {};     // relative to the gradient's norm
};
struct LoggedLayers {
  std::int64_t step = 0;
  std::vector<LoggedLayer> layers = {};
};

struct LoggedBucket {
  double bytes = 0;
  std::vector<std::string> layers = {};
  double ready = 0, begun = 0, finished = 0;  // seconds after the forward pass
};
// Of one step, in seconds; see StepProfile.
struct LoggedProfile {
  std::int64_t step = 0;
  double step_seconds = 0, forward = 0, backward = 0, exposed = 0;
  double compress = 0, exchange = 0, decompress = 0;
  double compress_cpu = 0, decompress_cpu = 0;
  std::vector<LoggedBucket> buckets = {};
};

struct RunLog {
  std::string name = {};  // of the file, without folder and ending
  std::string compression = {}, backend = {}, model = {};
  std::string loss_unit = {};                     // "nats" or "bits per character"
  int world_size = 0, hosts = 0, local_size = 0;  // 0: not told
  int threads = 0, cores = 0;
  std::int64_t min_numel = 0;
  std::int64_t parameters = 0;
  std::vector<RunPoint> points = {};
  std::vector<LoggedLayers> layers = {};
  std::optional<LoggedProfile> profile = {};  // the last one
  std::optional<comm::LinkModel> link = {};
  // Of the line "result", which a run that was ended early does not have.
  bool finished = false;
  std::optional<double> accuracy = {}, train_seconds = {}, wire_bytes_per_step = {},
                        dense_bytes_per_step = {};
};

// Throws FileError "<source>: line 3: <what is wrong>" for a line that is no JSON object with an
// event or lacks what its event has, and where no line tells of training. The last line may be torn
// where the run was ended while writing it.
RunLog parse_run_log(std::string_view text, const std::string& source);

}  // namespace thinwire::launch
