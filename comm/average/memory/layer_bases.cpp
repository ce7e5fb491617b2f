#include "thinwire/comm/average/memory/layer_bases.h"

#include <xxhash.h>

#include <algorithm>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/compressors/spectral/level_order.h"

namespace thinwire::comm {
namespace {

std::uint64_t hash_of(const spectral::MatrixBasis::State& state) {
  std::uint64_t hash = static_cast<std::uint64_t>(state.steps);
  for (const auto* part :
       {&state.left, &state.right, &state.left_sketch, &state.right_sketch, &state.row_sizes,
        &state.column_sizes, &state.row_levels, &state.column_levels}) {
    hash = XXH3_64bits_withSeed(part->data(), part->size() * sizeof(float), hash);
  }
  return hash;
}

}  // namespace

LayerBasesState state_of(const LayerBases& bases) {
  LayerBasesState state;
  for (const auto& [name, layer] : bases) {
    state.emplace(name, LayerBasisState{layer.basis.state(), layer.holds_residuals});
  }
  return state;
}

LayerBases bases_of(LayerBasesState state) {
  LayerBases bases;
  for (auto& [name, layer] : state) {
    bases.emplace(name,
                  LayerBasis{spectral::MatrixBasis(std::move(layer.basis)), layer.holds_residuals});
  }
  return bases;
}

std::string describe(const LayerBasesState& state) {
  std::string text;
  for (const auto& [name, layer] : state) {
    text += concat("\nbasis of '", name, "' after ", layer.basis.steps,
                   " steps: ", hash_of(layer.basis),
                   layer.holds_residuals ? ", of its residuals, too" : "");
  }
  return text;
}

void add_second(const spectral::MatrixBasis& basis,
                std::span<const SecondResidual::Range* const> ranges, float factor,
                std::span<float> residual) {
  if (ranges.empty()) return;
  std::vector<float> second(residual.size());
  add_ranges(ranges, factor, second);
  std::vector<std::uint32_t> places(residual.size());
  spectral::order_by_level(basis.row_levels(), basis.column_levels(), places);
  for (std::size_t i = 0; i < residual.size(); ++i) residual[i] += second[places[i]];
}

void bring_into(LayerBasis& layer, std::string_view name, std::span<float> residual,
                SecondResidual& second, int world) {
  THINWIRE_ASSERT(!layer.holds_residuals);
  add_ranges(second.unowned(name, {}), static_cast<float>(world), residual);
  second.drop_unowned(name, {});
  layer.basis.turn_into(residual);
  layer.holds_residuals = true;
}

void bring_out_of(LayerBasis& layer, std::string_view name, std::span<float> residual,
                  SecondResidual& second, int world) {
  THINWIRE_ASSERT(layer.holds_residuals);
  add_second(layer.basis, second.unowned(name, {}), static_cast<float>(world), residual);
  second.drop_unowned(name, {});
  layer.basis.turn_out_of(residual);
  layer.holds_residuals = false;
}

}  // namespace thinwire::comm
