// Which layers of a bucket any rank uses.
#pragma once

#include <vector>

#include "thinwire/comm/average/bucket_averager.h"

namespace thinwire::comm {

// By layer, whether any rank says that it is in use or has an element of it that is not zero: a
// byte a layer in one all_reduce. Equal on all ranks. Collective; throws CommError naming
// `sequence` when a rank is gone.
std::vector<bool> layers_in_use(c10d::ProcessGroup& group, const Bucket& bucket,
                                std::uint64_t sequence);

}  // namespace thinwire::comm
