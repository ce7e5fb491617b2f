// Frames that a rank refused while they were in GPU memory, and how all ranks come to know of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/failure/device_watch.h"
#include "thinwire/compressors/kernels/piece_task.h"

namespace thinwire::comm {

// Kernels note the first frame that does not fit and go on, so that no rank waits for another one.
// At the end of a step the ranks' notes are gathered on the device and copied to the host, which
// looks at them kStepsAhead steps later: on every rank at the same place of the program, and when
// they have long arrived. Not thread-safe. Work is queued on the current stream.
class DeviceVerdicts {
 public:
  // The host may be so many steps ahead of the device before it waits for it.
  static constexpr std::size_t kStepsAhead = 2;

  // `watch` is asked after every wait for the device; null: nobody.
  DeviceVerdicts(c10d::ProcessGroup& group, at::Device device, DeviceWatch* watch = nullptr);

  // Where kernels note it, in device memory.
  kernels::DeviceVerdict* note() const;

  // Collective.
  void end_step(std::int64_t step);
  // Before a step begins. Throws FrameError, with one text on all ranks, if any of them refused a
  // frame in the step kStepsAhead before the one that begins.
  void begin_step();
  // The same of all steps that have ended. Waits for the device.
  void settle();
  // Nobody looks at those that are still on their way: the group has failed.
  void forget();

 private:
  struct Step {
    at::Tensor host;  // pinned; of all ranks
    std::optional<c10::Event> copied = {};
    std::int64_t number = 0;
    bool pending = false;
  };
  void look_at(Step& step) const;

  c10d::ProcessGroup& group_;
  DeviceWatch* const watch_;
  at::Tensor mine_, all_;  // bytes
  std::array<Step, kStepsAhead> steps_;
  std::size_t next_ = 0;
};

}  // namespace thinwire::comm
