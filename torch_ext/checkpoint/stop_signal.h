// A job that is asked to make room: preempted, out of time, or moved.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire {

// SIGUSR1 and SIGTERM to any rank, at any time, stop all ranks after the same step:
//
//   thinwire::StopSignal stop(world.group());
//   for (; step < steps; ++step) {
//     stop.begin_step();
//     ...
//     if (stop.end_step()) { checkpoint.save(step + 1); checkpoint.wait(); return kStoppedExitCode;
//     }
//   }
//
// Schedulers send the first where they are told to (`sbatch --signal=USR1@60`, `mpirun` passes it
// on), the second when a job is preempted or an agent of torchrun ends. A rank that gets SIGTERM
// and does not come to the end of its step within ten seconds, because it waits for one that is
// gone, ends as it would have without this: by SIGALRM.
//
// One at a time in a process. Not thread-safe.
class StopSignal {
 public:
  // What a program should end with when it has saved: "try again" (EX_TEMPFAIL of sysexits.h).
  static constexpr int kStoppedExitCode = 75;

  // Takes over both signals until it is destroyed. Throws InvalidArgument where there is another.
  explicit StopSignal(c10::intrusive_ptr<c10d::ProcessGroup> group);
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // Starts to tell the others whether this rank has been asked to stop: an all-reduce of one
  // number, which travels while the step computes. Collective.
  void begin_step();
  // Whether any rank had been asked when it began this step; equal on all ranks. Throws CommError
  // where a rank is gone.
  bool end_step();

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  at::Tensor asked_;  // [1] int64: how many ranks
  c10::intrusive_ptr<c10d::Work> telling_;
  std::uint64_t steps_ = 0;
};

}  // namespace thinwire
