// The layers of a bucket that no codec touches, in one all_reduce of the buffer's own type.
#pragma once

#include "thinwire/comm/average/bucket_in_flight.h"
#include "thinwire/comm/average/reduce/phase_span.h"
#include "thinwire/comm/average/residuals.h"

namespace thinwire::comm {

// Adds what the layers are owed from steps in which they were compressed, divides by the number of
// ranks and starts the all_reduce. Dividing before adding keeps narrow types in range, as c10d's
// Reducer does, and with its very operation, so that uncompressed training has the same bits.
void start_dense_mean(c10d::ProcessGroup& group, BucketInFlight& in_flight, Residuals& residuals);

// Waits and writes the mean; forgets what was paid back, where it arrived. Returns the bytes that
// this rank sent. Throws CommError when a peer failed.
std::uint64_t finish_dense_mean(c10d::ProcessGroup& group, BucketInFlight& in_flight,
                                Residuals& residuals, Timeline* timeline, PhaseSeconds* phases);

}  // namespace thinwire::comm
