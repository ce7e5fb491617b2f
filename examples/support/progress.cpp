#include "thinwire/examples/support/progress.h"

#include <unistd.h>

#include <cstdio>

namespace thinwire::examples {
namespace {

// Redrawing more often than the eye can follow would cost time on a slow terminal.
constexpr std::int64_t kTerminalEvery = 10;
constexpr std::int64_t kFileEvery = 200;

}  // namespace

Progress::Progress(bool enabled, std::int64_t total_steps, std::int64_t done_steps)
    : enabled_(enabled),
      terminal_(isatty(STDOUT_FILENO) == 1),
      total_(total_steps),
      done_(done_steps),
      first_(done_steps + 1) {}

void Progress::step(double loss, double seconds, const CommunicationSummary& traffic) {
  ++done_;
  const std::int64_t every = terminal_ ? kTerminalEvery : kFileEvery;
  if (!enabled_ || (done_ % every != 0 && done_ != first_)) return;
  std::printf("%sstep %lld/%lld  loss %.4f  %.1f ms  wire %.3f MB (%.2fx)%s", terminal_ ? "\r" : "",
              static_cast<long long>(done_), static_cast<long long>(total_), loss, 1e3 * seconds,
              traffic.wire_bytes_per_step() / 1e6, traffic.ratio(), terminal_ ? "\033[K" : "\n");
  std::fflush(stdout);
}

void Progress::epoch(int epoch, int epochs, double test_accuracy, double train_seconds) {
  if (!enabled_) return;
  std::printf("%sepoch %d/%d  test accuracy %.2f %%  %.1f s%s\n", terminal_ ? "\r" : "", epoch,
              epochs, 100 * test_accuracy, train_seconds, terminal_ ? "\033[K" : "");
  std::fflush(stdout);
}

}  // namespace thinwire::examples
