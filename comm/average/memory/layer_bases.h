// The bases in which layers of spectral(...) are coded, and in which they then keep what they are
// owed.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>

#include "thinwire/comm/average/memory/second_residual.h"
#include "thinwire/compressors/spectral/matrix_basis.h"

namespace thinwire::comm {

// By parameter name. The same bits on all ranks: bases are made of what all of them decode.
struct LayerBasis {
  spectral::MatrixBasis basis;
  // Whether the layer's residuals are in it: the first one in its elements' own order, second ones
  // in level order (spectral/level_order.h), in which an owner's share of each class is a range. So
  // they need no turning from step to step, but whenever the basis is refreshed.
  bool holds_residuals = false;
};
using LayerBases = std::map<std::string, LayerBasis, std::less<>>;

// A copy, for checkpoints. Bit-exact.
struct LayerBasisState {
  spectral::MatrixBasis::State basis;
  bool holds_residuals = false;
  bool operator==(const LayerBasisState&) const = default;
};
using LayerBasesState = std::map<std::string, LayerBasisState, std::less<>>;
LayerBasesState state_of(const LayerBases& bases);
// Throws InvalidArgument as MatrixBasis.
LayerBases bases_of(LayerBasesState state);
// A line for each basis, for ranks to compare: the directions as a hash. Nothing where there is
// none.
std::string describe(const LayerBasesState& state);

// residual += factor · second, with ranges of the second residual in level order.
void add_second(const spectral::MatrixBasis& basis,
                std::span<const SecondResidual::Range* const> ranges, float factor,
                std::span<float> residual);

// Both change how a layer's residuals are held, not what they say: a second residual becomes part
// of the first one, `world` times, for it is in the mean then as before. `residual` is the first
// one.
void bring_into(LayerBasis& layer, std::string_view name, std::span<float> residual,
                SecondResidual& second, int world);
void bring_out_of(LayerBasis& layer, std::string_view name, std::span<float> residual,
                  SecondResidual& second, int world);

}  // namespace thinwire::comm
