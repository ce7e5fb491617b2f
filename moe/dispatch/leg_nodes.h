// The legs of an exchange as nodes of the autograd graph.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "thinwire/moe/dispatch/row_routes.h"

namespace thinwire::moe {

// TokenDispatcher::start() and finish(), differentiable. The ticket that leads from one to the
// other is a tensor of one number, so that the graph has an edge there.
at::Tensor start_leg(const RowRoutesPtr& routes, std::int64_t chunk, Leg leg,
                     const at::Tensor& rows);
at::Tensor finish_leg(const RowRoutesPtr& routes, std::int64_t chunk, Leg leg,
                      const at::Tensor& ticket);

}  // namespace thinwire::moe
