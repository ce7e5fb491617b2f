// What compression carries over from step to step for layers whose gradients are in GPU memory: the
// residuals, in the memory of the same device. Their names and meaning are those of ErrorFeedback,
// MomentumCorrection, SecondResidual and WarmStarts.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/comm/average/memory/error_feedback.h"
#include "thinwire/comm/average/memory/momentum_correction.h"
#include "thinwire/comm/average/memory/second_residual.h"
#include "thinwire/comm/average/memory/warm_start.h"

namespace thinwire::comm {

// Kernels decide whether a step changes a residual, so the host knows what there is but not what it
// is worth. Where nothing is owed to a mean yet, its second residual holds -0, which added to any
// number gives that number; SecondResidual has no such range.
//
// Functions queue their work on the current stream, those that read or write host memory wait for
// it. Not thread-safe.
class DeviceMemory {
 public:
  using Extents = std::span<const SecondResidual::Extent>;

  explicit DeviceMemory(at::Device device) : device_(device) {}

  // Of `numel` elements, zero at first use. Throws InvalidArgument for another size than before.
  at::Tensor residual(std::string_view name, std::int64_t numel);
  // The same where there is one, else undefined.
  at::Tensor held(std::string_view name) const;
  // Of a layer with momentum correction: -0 in both at first use, which stays nothing whatever it
  // is multiplied by or added to; and room for the velocity of the step under way.
  struct Momentum {
    at::Tensor velocity, residual, next;
  };
  Momentum momentum(std::string_view name, std::int64_t numel);
  // Its residual where there is one, else undefined.
  at::Tensor held_momentum(std::string_view name) const;
  // The Q that a matrix starts from, in columns: at least `columns`, those that are not known -0.
  at::Tensor warm_start(std::string_view name, std::int64_t cols, std::int64_t columns);
  // Of these elements, nothing at first use.
  at::Tensor second(std::string_view name, SecondResidual::Extent extent);
  // Of the whole layer, what this rank holds of second residuals that are none of `owned`, which is
  // in order; -0 elsewhere. Undefined where it holds none.
  at::Tensor orphans(std::string_view name, std::int64_t numel, Extents owned) const;

  void drop_residual(std::string_view name);
  void drop_momentum(std::string_view name);
  void drop_unowned(std::string_view name, Extents owned);

  // Changes whenever memory that was given out is given up.
  std::uint64_t version() const { return version_; }

  // Replaces all by what the host holds, which then holds it no longer.
  void take(ErrorFeedback& feedback, MomentumCorrection& momentum, SecondResidual& second,
            WarmStarts& warm_starts);
  // Adds all to the states. Waits for the device.
  void copy_to(ErrorFeedback::State& residuals, MomentumCorrection::State& momentum,
               SecondResidual::State& second, WarmStarts& warm_starts) const;
  // Memory of its own with the same values.
  DeviceMemory copy() const;
  // Whether the layer is owed anything.
  bool carries(std::string_view name) const;

  // Bytes held.
  std::size_t residual_bytes() const;
  std::size_t momentum_bytes() const;
  std::size_t second_bytes() const;
  std::size_t warm_start_bytes() const;

 private:
  using Ranges = std::map<SecondResidual::Extent, at::Tensor>;
  struct Start {
    std::int64_t cols = 0;
    at::Tensor q;
  };

  at::Tensor filled(std::int64_t numel, float value) const;

  at::Device device_;
  std::map<std::string, at::Tensor, std::less<>> residuals_;
  std::map<std::string, Momentum, std::less<>> momentum_;
  std::map<std::string, Ranges, std::less<>> second_;
  std::map<std::string, Start, std::less<>> starts_;
  std::uint64_t version_ = 0;
};

}  // namespace thinwire::comm
