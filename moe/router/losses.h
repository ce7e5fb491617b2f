// Auxiliary losses that keep the experts evenly used, over the tokens of one rank. All are scalars,
// differentiable, and 0 without tokens.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/moe/router/router.h"

namespace thinwire::moe {

// E · sum over experts of f_i P_i, f_i the share of the pairs that went to expert i and P_i the
// mean probability of i; 1 when perfectly even. Fedus et al., "Switch Transformers", 2021,
// equation 4.
at::Tensor switch_balance_loss(const Routing& routing, std::int64_t experts);

// The same with f_i over the first choices only. Lepikhin et al., "GShard", 2020, section 2.2.
at::Tensor gshard_balance_loss(const Routing& routing, std::int64_t experts);

// Mean of log²(sum of exp(logits)). Zoph et al., "ST-MoE", 2022, equation 5.
at::Tensor router_z_loss(const Routing& routing);

// Squared coefficient of variation of the experts' summed gate weights. Shazeer et al., 2017,
// equation 7.
at::Tensor importance_loss(const Routing& routing, std::int64_t experts);

}  // namespace thinwire::moe
