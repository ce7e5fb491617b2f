#include "thinwire/comm/average/reduce/phase_span.h"

#include "thinwire/common/thread_time.h"

namespace thinwire::comm {
namespace {

struct PhaseNames {
  std::string_view timeline;
  const char* profiler;  // kept by the profiler as it is
};
constexpr std::array<PhaseNames, kPhases.size()> kPhaseNames = {
    {{"COMPRESS", "thinwire::compress"},
     {"EXCHANGE", "thinwire::exchange"},
     {"DECOMPRESS", "thinwire::decompress"}}};

const PhaseNames& names_of(Phase phase) {
  return kPhaseNames[static_cast<std::size_t>(phase)];
}

}  // namespace

PhaseSpan::PhaseSpan(Timeline* timeline, std::string_view track, PhaseSeconds* seconds, Phase phase,
                     std::int64_t bytes)
    : phase_(phase),
      span_(timeline, timeline ? std::string(track) : std::string(), names_of(phase).timeline,
            bytes),
      range_(at::RecordScope::FUNCTION),
      seconds_(seconds),
      begin_(Clock::now()) {
  if (range_.isActive()) range_.before(names_of(phase).profiler);
  if (seconds_) cpu_begin_ = thread_seconds();
}

PhaseSpan::~PhaseSpan() {
  if (!seconds_) return;
  const auto phase = static_cast<std::size_t>(phase_);
  seconds_->wall[phase] += seconds_since(begin_);
  seconds_->cpu[phase] += thread_seconds() - cpu_begin_;
}

}  // namespace thinwire::comm
