// What rank 0 says while it trains: a line that is redrawn on a terminal, now and then a line in a
// file.
#pragma once

#include <cstdint>

#include "thinwire/torch_ext/ddp/gradient_exchange.h"

namespace thinwire::examples {

class Progress {
 public:
  // Says nothing unless `enabled`.
  Progress(bool enabled, std::int64_t total_steps, std::int64_t done_steps = 0);

  void step(double loss, double seconds, const CommunicationSummary& traffic);
  void epoch(int epoch, int epochs, double test_accuracy, double train_seconds);

 private:
  bool enabled_;
  bool terminal_;
  std::int64_t total_;
  std::int64_t done_, first_;
};

}  // namespace thinwire::examples
