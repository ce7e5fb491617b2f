// The phases of an exchange as they are seen from outside: in the timeline, in torch's profiler and
// in sums of seconds.
#pragma once

#include <ATen/record_function.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "thinwire/common/stopwatch.h"
#include "thinwire/common/timeline.h"

namespace thinwire::comm {

enum class Phase { kCompress, kExchange, kDecompress };
inline constexpr std::array kPhases = {Phase::kCompress, Phase::kExchange, Phase::kDecompress};

// What one rank spent in each phase, added up over exchanges.
struct PhaseSeconds {
  // Passed on the clock. Of kExchange: what the communication thread waited for messages.
  std::array<double, kPhases.size()> wall{};
  // Of the processor, by this thread alone: does not grow while others have the core.
  std::array<double, kPhases.size()> cpu{};

  double wall_of(Phase phase) const { return wall[static_cast<std::size_t>(phase)]; }
  double cpu_of(Phase phase) const { return cpu[static_cast<std::size_t>(phase)]; }
};

// One phase from construction to destruction, on the thread of both:
//   - a span of the timeline, COMPRESS, EXCHANGE or DECOMPRESS, where there is one,
//   - a range "thinwire::compress", "thinwire::exchange" or "thinwire::decompress" of torch's
//     profiler, where one listens to this thread,
//   - its seconds, added to `seconds`, where that is not null.
class PhaseSpan {
 public:
  PhaseSpan(Timeline* timeline, std::string_view track, PhaseSeconds* seconds, Phase phase,
            std::int64_t bytes = -1);
  // Of a ReductionContext, or of whatever else has these three.
  template <typename Context>
  PhaseSpan(const Context& context, Phase phase, std::int64_t bytes = -1)
      : PhaseSpan(context.timeline, context.track, context.phases, phase, bytes) {}
  ~PhaseSpan();
  PhaseSpan(const PhaseSpan&) = delete;
  PhaseSpan& operator=(const PhaseSpan&) = delete;

 private:
  const Phase phase_;
  Timeline::Span span_;
  at::RecordFunction range_;
  PhaseSeconds* const seconds_;
  Clock::time_point begin_;
  double cpu_begin_ = 0;
};

}  // namespace thinwire::comm
