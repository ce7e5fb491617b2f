// How the ranks of an exchange come to share the bases of its spectral legs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/moe/rows/leg_bytes.h"
#include "thinwire/moe/rows/row_moments.h"

namespace thinwire::moe {

// One spectral leg of one rank.
struct BasisLeg {
  Leg leg;
  SpectralOptions options;
  int owner;           // the rank that makes the basis
  RowMoments fresh;    // of this rank's rows since the last basis
  RowMoments running;  // the owner's: of all ranks, older rows weighing less
  at::Tensor message;  // of the newest basis, undefined before there is one
  std::shared_ptr<const SpectralBasis> basis = nullptr;  // made of the message

  // Whether a new basis is due before the training step with this number, counted from 0.
  bool is_due(std::int64_t step) const { return step > 0 && step % options.refresh == 0; }
  // Takes a message over, unless it has no basis. Throws FrameError for bytes that are no message.
  void take(const at::Tensor& next, std::int64_t dim);
  // The newest basis if it may be used; null before there is one, and while rows move away from
  // one basis before the next.
  std::shared_ptr<const SpectralBasis> usable() const;
};

// Makes new bases for the given legs, the same on all ranks: every rank sends its moments (`fresh`,
// one for each leg) to each leg's owner, which adds them in the order of the ranks, measures how
// far they are from the last basis, computes the next and sends it to all. Two exchanges for all
// the legs together. A leg for which no rank has seen a row keeps its message. Collective; `group`
// may be null: a single rank. Returns the bytes that this rank sent.
std::int64_t agree_on_bases(c10d::ProcessGroup* group, const std::vector<BasisLeg*>& legs,
                            const std::vector<RowMoments>& fresh, std::int64_t dim,
                            at::Device device, std::uint64_t sequence);

}  // namespace thinwire::moe
