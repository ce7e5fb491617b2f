// What an optimizer remembers, by the names of what it optimises: moments that fit a job in which
// other ranks hold other parameters.
#pragma once

#include "thinwire/comm/state/named_tensors.h"

namespace torch::optim {
class Optimizer;
}

namespace thinwire {

// `pieces`: what the optimizer's parameters consist of, by names that mean the same in every job;
// each a parameter or a view of one (one expert of a stacked parameter, say, as in
// MoELayer::weights()). Others among them, buffers for instance, are passed over.
//
// The moments of a piece as "PIECE/exp_avg", the steps that it has seen as "PIECE/step"; nothing
// for a parameter that has not had a gradient yet. Of torch's SGD, Adam, AdamW, RMSprop and
// Adagrad. What the groups' options say (the learning rate) is the program's. Throws
// InvalidArgument for another optimizer, or a parameter that has a state and no pieces.
NamedTensors optimizer_state(const torch::optim::Optimizer& optimizer, const NamedTensors& pieces);
// Replaces all moments by those of `state`. Throws InvalidArgument, naming the tensor, for shapes
// that do not fit or where pieces of one parameter have seen different numbers of steps.
void load_optimizer_state(torch::optim::Optimizer& optimizer, const NamedTensors& pieces,
                          const NamedTensors& state);

namespace detail {

// Whether it is one of those optimizers itself: a class that is made of one may remember more.
bool has_known_moments(const torch::optim::Optimizer& optimizer);
// Of such an optimizer the moments of whole parameters by their numbers, in the order of the
// groups, "0/exp_avg", sharing their memory; and back. Throws InvalidArgument, naming the tensor.
NamedTensors numbered_moments(const torch::optim::Optimizer& optimizer);
void load_numbered_moments(torch::optim::Optimizer& optimizer, const NamedTensors& saved);

}  // namespace detail
}  // namespace thinwire
