// What layers in GPU memory are owed from earlier steps, see block.h.
#pragma once

#include "thinwire/compressors/kernels/block.h"

namespace thinwire::kernels {

// Whether the residuals of a layer are left out in this step. An entry is one of a table
// (piece_task.h, sparse_task.h, low_rank_task.h).
template <typename Entry>
THINWIRE_HOST_DEVICE bool resets(const Entry& entry, std::uint64_t step) {
  return entry.reset_every > 0 && step % static_cast<std::uint64_t>(entry.reset_every) == 0;
}

// Element `i` of an entry and what it is owed, in the order in which Residuals::correct() and
// add_carried() add: a layer that goes as it is gets all of its residual back.
template <typename Entry>
THINWIRE_HOST_DEVICE float with_owed(const Entry& entry, float value, float ranks,
                                     bool without_residual, std::uint64_t i) {
  const bool owes = entry.residual != nullptr && !(entry.keeps_loss && without_residual);
  if (owes && !entry.keeps_loss) value = value + 1.0f * entry.residual[i];
  if (entry.leftover != nullptr) value = value + 1.0f * entry.leftover[i];
  if (entry.orphan != nullptr) value = value + ranks * entry.orphan[i];
  if (owes && entry.keeps_loss) value = value + entry.decay * entry.residual[i];
  return value;
}

}  // namespace thinwire::kernels
