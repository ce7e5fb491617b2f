#include "thinwire/comm/average/reduce/spectral_reduce.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/ecsq.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {
namespace {

using spectral::MatrixBasis;

std::span<float> run_of(std::span<float> array, std::int64_t first, std::int64_t numel) {
  return array.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(numel));
}

}  // namespace

SpectralReduce::SpectralReduce(std::span<const PartitionLayer> layers, const Peers& peers,
                               int chunks, const SpectralMemory& memory)
    : peers_(peers),
      codec_(*layers[0].codec),
      options_(*ecsq_options(codec_)->basis),
      chunks_(chunks),
      numel_(total_numel(layers)),
      memory_(memory) {
  check(numel_ <= std::numeric_limits<std::int32_t>::max(), "the layers of a bucket have ", numel_,
        " elements under ", codec_.spec(), ", which takes 2147483647 at most");
}

SpectralReduce::~SpectralReduce() = default;

RandomKey SpectralReduce::key_of(const LayerValues& layer, std::int64_t steps) const {
  return {.seed = context_.seed, .step = static_cast<std::uint64_t>(steps), .layer = layer.id};
}

// That of the layer, or a first one of its shape and the codec's directions.
LayerBasis& SpectralReduce::basis_of(const LayerValues& layer) {
  const auto shape =
      spectral::matrix_shape(layer.shape, static_cast<std::int64_t>(layer.values.size()));
  const auto known = memory_.bases.find(layer.name);
  if (known != memory_.bases.end()) {
    const MatrixBasis& basis = known->second.basis;
    if (basis.shape() == shape &&
        basis.state().directions == spectral::directions_of(shape, options_.directions)) {
      return known->second;
    }
    if (known->second.holds_residuals) {
      bring_out_of(known->second, layer.name, layer.kept, memory_.second, peers_.size());
    }
    memory_.bases.erase(known);
  }
  const auto made = memory_.bases.emplace(
      layer.name, LayerBasis{MatrixBasis(shape, options_.directions, key_of(layer, 0))});
  return made.first->second;
}

void SpectralReduce::begin() {
  std::vector<LayerBasis*> bases;
  for (const LayerValues& layer : layers_) bases.push_back(&basis_of(layer));
  place_layers(bases);
  bring_residuals(bases);
  load_second();
  {
    PhaseSpan span(context_, Phase::kCompress);
    array_ = context_.workspace->arena.floats(static_cast<std::size_t>(numel_));
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      const LayerValues& layer = layers_[l];
      bases[l]->basis.turn_into(layer.values);
      kernels::scatter_scaled(layer.values.data(),
                              layer.carried.empty() ? nullptr : layer.carried.data(),
                              layer.carried_factor, layout_.places[l], array_.data());
    }
  }
  const auto keeps = [](const LayerValues& layer) { return !layer.residual.empty(); };
  array_finite_ = true;
  whole_ = {.id = layers_[0].id,
            .name = layers_[0].name,
            .codec = &codec_,
            .values = array_,
            .residual = std::ranges::any_of(layers_, keeps) ? array_ : std::span<float>(),
            .residual_finite = &array_finite_,
            .second = &second_};
  slots_->start(context_, std::span(&whole_, 1));
}

// A layout for the bases as they are, where they have changed.
void SpectralReduce::place_layers(std::span<LayerBasis* const> bases) {
  const auto is_known = [](const Levels& known, const LayerBasis* layer) {
    return std::ranges::equal(known.rows, layer->basis.row_levels()) &&
           std::ranges::equal(known.columns, layer->basis.column_levels());
  };
  if (slots_ && std::ranges::equal(levels_, bases, is_known)) return;
  levels_.clear();
  std::vector<const MatrixBasis*> matrices;
  for (const LayerBasis* layer : bases) {
    const auto rows = layer->basis.row_levels(), columns = layer->basis.column_levels();
    levels_.push_back({{rows.begin(), rows.end()}, {columns.begin(), columns.end()}});
    matrices.push_back(&layer->basis);
  }
  layout_ = class_layout(matrices, peers_.size(), chunks_);
  owned_.assign(bases.size(), {});
  for (const ClassLayout::Run& run : layout_.runs) {
    if (run.owner == peers_.rank()) owned_[run.layer].push_back({run.begin, run.numel});
  }
  for (auto& extents : owned_) std::ranges::sort(extents);
  second_ = {};
  slots_ =
      std::make_unique<SlotReduce>(layout_.slices, codec_, peers_, memory_.steps, codec_.spec());
}

// What a layer is owed is in its basis then, and this rank's second residuals are those of the runs
// that it owns.
void SpectralReduce::bring_residuals(std::span<LayerBasis* const> bases) {
  const int world = peers_.size();
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const LayerValues& layer = layers_[l];
    if (layer.kept.empty()) continue;
    if (!bases[l]->holds_residuals) {
      bring_into(*bases[l], layer.name, layer.kept, memory_.second, world);
    }
    const auto owned = layer.second ? std::span<const SecondResidual::Extent>(owned_[l])
                                    : std::span<const SecondResidual::Extent>();
    add_second(bases[l]->basis, memory_.second.unowned(layer.name, owned),
               static_cast<float>(world), layer.kept);
    memory_.second.drop_unowned(layer.name, owned);
  }
}

// The array's second residuals from those of the layers.
void SpectralReduce::load_second() {
  std::size_t run = 0;
  for (const auto& owners : layout_.slices) {
    for (const Piece& piece : owners[static_cast<std::size_t>(peers_.rank())].pieces) {
      part_.assign(static_cast<std::size_t>(piece.numel), 0.0f);
      while (layout_.runs[run].first < piece.begin) ++run;
      for (; run < layout_.runs.size() && layout_.runs[run].first < piece.begin + piece.numel;
           ++run) {
        const ClassLayout::Run& from = layout_.runs[run];
        const LayerValues& layer = layers_[from.layer];
        if (!layer.second) continue;
        const auto kept = layer.second->of(layer.name, from.begin, from.numel);
        if (kept.empty()) continue;
        const auto into = run_of(part_, from.first - piece.begin, from.numel);
        std::ranges::transform(kept, into.begin(),
                               [&](float value) { return layer.second_decay * value; });
      }
      second_.store(layers_[0].name, piece.begin, part_);
    }
  }
}

void SpectralReduce::store_second() {
  for (const auto& owners : layout_.slices) {
    for (const Piece& piece : owners[static_cast<std::size_t>(peers_.rank())].pieces) {
      const auto part = second_.of(layers_[0].name, piece.begin, piece.numel);
      std::ranges::copy(part, array_.begin() + piece.begin);
    }
  }
  for (const ClassLayout::Run& run : layout_.runs) {
    const LayerValues& layer = layers_[run.layer];
    if (run.owner != peers_.rank() || !layer.second) continue;
    layer.second->store(layer.name, run.begin, run_of(array_, run.first, run.numel));
  }
}

void SpectralReduce::deliver(bool keep) {
  if (keep && array_finite_) {
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      const LayerValues& layer = layers_[l];
      if (layer.kept.empty()) continue;
      kernels::gather(array_.data(), layout_.places[l], layer.kept.data());
    }
  }
  slots_->deliver(false);
  if (context_.refusal->any()) return;
  PhaseSpan span(context_, Phase::kDecompress);
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const LayerValues& layer = layers_[l];
    LayerBasis& own = memory_.bases.at(std::string(layer.name));
    kernels::gather(array_.data(), layout_.places[l], layer.values.data());
    if (keep) own.basis.learn(layer.values);
    own.basis.turn_out_of(layer.values);
  }
}

void SpectralReduce::commit() {
  slots_->commit();
  store_second();
  std::vector<LayerBasis*> bases;
  for (const LayerValues& layer : layers_) {
    bases.push_back(&memory_.bases.at(std::string(layer.name)));
  }
  const auto due = [&](const LayerBasis* layer) { return is_due(layer->basis); };
  if (std::ranges::any_of(bases, due)) refresh(bases);
}

bool SpectralReduce::is_due(const MatrixBasis& basis) const {
  const std::int64_t steps = basis.state().steps;
  return steps % options_.every == 0 ||
         (steps < options_.every && std::has_single_bit(static_cast<std::uint64_t>(steps)));
}

void SpectralReduce::refresh(std::span<LayerBasis* const> bases) {
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const LayerValues& layer = layers_[l];
    const bool holds = bases[l]->holds_residuals && !layer.kept.empty();
    if (holds) {
      add_second(bases[l]->basis, memory_.second.unowned(layer.name, {}),
                 static_cast<float>(peers_.size()), layer.kept);
      memory_.second.drop_unowned(layer.name, {});
    }
    if (!is_due(bases[l]->basis)) continue;
    if (holds) bases[l]->basis.turn_out_of(layer.kept);
    bases[l]->basis.refresh(key_of(layer, bases[l]->basis.state().steps));
    if (holds) bases[l]->basis.turn_into(layer.kept);
  }
}

std::size_t SpectralReduce::bytes() const {
  std::size_t bytes = layout_.runs.capacity() * sizeof(layout_.runs[0]) + second_.bytes();
  for (const auto& places : layout_.places) bytes += places.capacity() * sizeof(places[0]);
  for (const auto& extents : owned_) bytes += extents.capacity() * sizeof(extents[0]);
  return bytes + (slots_ ? slots_->bytes() : 0);
}

}  // namespace thinwire::comm
