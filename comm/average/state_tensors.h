// The state of a BucketAverager as named tensors, for checkpoints.
#pragma once

#include <map>
#include <string>

#include <ATen/core/Tensor.h>

#include "thinwire/comm/average/residuals.h"

namespace thinwire::comm {

// float32 tensors on the CPU, which own their memory. Names, for a parameter P:
//   residual/P, velocity/P, momentum_residual/P   of its number of elements
//   second_residual/B/P                           the elements from B on
//   warm_start/P                                  [rank, columns]
//   shared_step/C                                 [2], C the spec of a codec with a shared step, or
//                                                 factors=SPEC where that is powersgd's for factors
//   slots/C/P                                     [11] in float64 and two for each slot, of the
//                                                 layers that begin with P: a SharedSteps::Group;
//                                                 of factors slots/C/P/FACTOR
//   basis/PART/P                                  parts of a spectral::MatrixBasis::State, and
//                                                 basis/shape/P, [5] in float64: rows, columns,
//                                                 directions, steps, whether residuals are in it
std::map<std::string, at::Tensor> to_tensors(const AveragerState& state);

// The same of what `residuals` holds, without copying what is as large as the model: residuals,
// velocities and second residuals lie where `residuals` has them, and are valid until it changes.
std::map<std::string, at::Tensor> tensors_in_place(const Residuals& residuals);

// The inverse, bit for bit. Throws InvalidArgument that names a tensor of another type or shape, or
// with a name that to_tensors() does not give, or a velocity without its residual.
AveragerState state_from_tensors(const std::map<std::string, at::Tensor>& tensors);

}  // namespace thinwire::comm
