// Ranks that run out of inputs before others, see DistributedDataParallel::join().
#pragma once

#include <cstdint>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/torch_ext/ddp/options.h"

namespace thinwire::detail {

// Within join(), every forward pass, and every backward pass that is averaged, begins with a round:
// all ranks tell each other what they are about to do, so that those without inputs can do their
// part of it. Not thread-safe.
class UnevenInputs {
 public:
  enum class Event : std::int64_t { kNoInputs = 0, kForward = 1, kBackward = 2 };

  struct Round {
    Event event = Event::kNoInputs;  // of the ranks with inputs; kNoInputs where none has any left
    bool sync = false;               // a forward pass before a backward pass that is averaged
    bool broadcast = false;          // a forward pass that begins with a broadcast of the buffers
    int active = 0;                  // ranks with inputs
    int first_active = 0;            // the lowest of them; of the last round where none is left
  };

  UnevenInputs(c10::intrusive_ptr<c10d::ProcessGroup> group, JoinOptions options)
      : group_(std::move(group)), options_(options) {}

  // Collective. Throws InvalidArgument on every rank where ranks with inputs do different things or
  // the options differ, and by throw_on_early_termination; CommError where a rank is gone.
  Round meet(Event mine, bool sync = false, bool broadcast = false);

  // What an average over all ranks is to be multiplied by.
  double scale(const Round& round) const;

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  JoinOptions options_;
  std::uint64_t rounds_ = 0;
  int last_first_active_ = 0;
};

}  // namespace thinwire::detail
