// A timeline that a training wrote with --timeline, and one step of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thinwire::launch {

// Seconds from the beginning of the step.
struct TraceSpan {
  std::string track = {}, phase = {};
  double begin = 0, end = 0;
  std::optional<std::int64_t> bytes = {};
};

// The step of median length of a trace, or where no step is marked (OuterOptimizer) its last spans.
struct TraceStep {
  std::string name = {};  // of the file, without folder and ending
  int steps = 0;          // in the trace; 0: none is marked
  double seconds = 0;
  double backward_end = 0;            // the last gradient was there
  std::vector<TraceSpan> spans = {};  // by begin
  // Seconds in which the communication thread coded or waited for the network, before and after
  // that.
  double hidden = 0, exposed = 0;
};

// Throws FileError, starting with `source`, for what is not a trace in Chrome's array format or has
// no spans.
TraceStep parse_trace(std::string_view text, const std::string& source);

}  // namespace thinwire::launch
