// Payloads of chosen entries with blocks of threads, see block.h and sparse_task.h: what
// compressors/codecs/{topk,ternary}.cpp read, with the indices in form 253 of index_coder.h.
#pragma once

#include <array>

#include "thinwire/compressors/kernels/drawn_block.h"

namespace thinwire::kernels {

// Elements of which ternary's sum of magnitudes is taken first.
inline constexpr std::uint32_t kMagnitudeRun = 256;

struct EntriesShared {
  bool finite[kMaxBlockThreads];
  std::uint32_t first_word[kMaxBlockThreads];  // by rank
  float mean[kSparseTile];
};

// What is stored of a value, see write_values().
THINWIRE_HOST_DEVICE std::uint16_t narrowed(EntryForm form, float value) {
  const float limit = form == EntryForm::kFloat16 ? 65504.0f : 0x1.FEp127f;
  if (is_finite(value)) value = value > limit ? limit : value < -limit ? -limit : value;
  return form == EntryForm::kFloat16 ? half_from_float(value) : bfloat_from_float(value);
}
THINWIRE_HOST_DEVICE float widened(EntryForm form, std::uint16_t narrow) {
  return form == EntryForm::kFloat16 ? float_from_half(narrow) : float_from_bfloat(narrow);
}

// The sums of all runs, then of these, in order: as sum_of_magnitudes() of ternary.cpp.
template <typename Context>
THINWIRE_HOST_DEVICE void find_scale(Context& block, const SparseTask& task, std::uint32_t index) {
  const SparseLayer& layer = task.layers[index];
  if (layer.form != EntryForm::kSigns) return;
  const float* const values = task.chosen + layer.first_entry;
  double* const sums = task.magnitudes + layer.first_run * (kEntryRun / kMagnitudeRun);
  const std::uint32_t runs = (layer.kept + kMagnitudeRun - 1) / kMagnitudeRun;
  for (std::uint32_t run = block.thread(); run < runs; run += block.size()) {
    double sum = 0;
    for (std::uint32_t j = run * kMagnitudeRun; j < (run + 1) * kMagnitudeRun && j < layer.kept;
         ++j) {
      sum += static_cast<double>(float_of(magnitude_bits(values[j])));
    }
    sums[run] = sum;
  }
  block.sync();
  if (block.thread() != 0) return;
  double sum = 0;
  for (std::uint32_t run = 0; run < runs; ++run) sum += sums[run];
  const auto scale = static_cast<float>(sum / static_cast<double>(layer.kept));
  const bool nan = magnitude_bits(scale) > kFloatInfinityBits;
  task.scales[index] = nan ? float_of(kFloatNanBits) : scale;
}

// The first entry whose bit of the upper part is bit `bit` or lies after it: so many lie before.
THINWIRE_HOST_DEVICE std::uint32_t entries_before(const std::uint32_t* indices,
                                                  const SparseLayer& layer, std::uint64_t bit) {
  std::uint32_t low = 0, high = layer.kept;
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (std::uint64_t{indices[middle] >> layer.shape.low_bits} + middle < bit) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// One share of a layer's upper part and its directory.
template <typename Context>
THINWIRE_HOST_DEVICE void pack_upper(const Context& block, const SparseLayer& layer,
                                     const std::uint32_t* indices, std::uint32_t begin,
                                     std::uint32_t end, std::byte* words) {
  std::byte* const upper =
      words + std::uint64_t{4} * (layer.shape.directory_words + layer.shape.low_words);
  for (std::uint32_t w = begin + block.thread(); w < end; w += block.size()) {
    const std::uint32_t first = entries_before(indices, layer, std::uint64_t{32} * w);
    std::uint32_t word = 0;
    for (std::uint32_t j = first; j < layer.kept; ++j) {
      const std::uint64_t bit = std::uint64_t{indices[j] >> layer.shape.low_bits} + j;
      if (bit >= std::uint64_t{32} * (w + 1)) break;
      word |= 1u << (bit % 32);
    }
    store_word(upper + std::uint64_t{4} * w, word);
    if (w % kDirectoryRun == 0) store_word(words + w / kDirectoryRun * 4, first);
  }
}

template <typename Context>
THINWIRE_HOST_DEVICE void pack_run(Context& block, EntriesShared& shared, const SparseTask& task,
                                   std::uint64_t run) {
  const auto [index, number, begin, count] = run_of(task, run);
  const SparseLayer& layer = task.layers[index];
  const std::uint32_t runs = (layer.kept + kEntryRun - 1) / kEntryRun;
  const std::uint32_t* const indices = task.indices + layer.first_entry;
  const float* const chosen = task.chosen + layer.first_entry;
  std::byte* const payload = task.payload + layer.payload;
  std::byte* const words = payload + 8;
  std::byte* const values = payload + entry_values_at(layer.shape);
  const bool signs = layer.form == EntryForm::kSigns;
  const float scale = signs ? task.scales[index] : 0;
  if (number == 0 && block.thread() == 0) {
    store_word(payload, signs ? bits_of(scale) : layer.kept);
    store_word(payload + 4, kEliasFanoForm);
  }

  const float most = 0x1.FFFFFEp127f / static_cast<float>(task.world);
  bool finite = true;
  for (std::uint32_t j = begin + block.thread(); j < begin + count; j += block.size()) {
    const float value = chosen[j];
    float sent = value;
    if (signs) {
      sent = float_of(bits_of(scale) | (bits_of(value) & 0x80000000u));
    } else if (layer.form == EntryForm::kFloat32) {
      store_word(values + std::uint64_t{4} * j, bits_of(value));
    } else {
      const std::uint16_t narrow = narrowed(layer.form, value);
      store_half(values + std::uint64_t{2} * j, narrow);
      sent = widened(layer.form, narrow);
    }
    finite = finite && float_of(magnitude_bits(sent)) <= most;
    float* const at = task.lost + layer.value + indices[j];
    const float lost = value - sent;
    *at = lost;
    // Where something was sent, what pushed it is over: MomentumCorrection::commit().
    if (layer.has_momentum && lost != value) layer.new_velocity[indices[j]] = 0;
  }
  for (std::uint32_t b = block.thread(); signs && 8 * b < count; b += block.size()) {
    values[begin / 8 + b] = byte_of_plane(
        8 * b, count, [&](std::uint32_t i) { return bits_of(chosen[begin + i]) >> 31 != 0; });
  }

  const std::uint32_t bits = layer.shape.low_bits;
  std::byte* const low_words = words + std::uint64_t{4} * layer.shape.directory_words +
                               std::uint64_t{4} * (kEntryRun / 32) * bits * number;
  for (std::uint32_t w = block.thread(); bits > 0 && 32 * w < count * bits; w += block.size()) {
    store_word(low_words + std::uint64_t{4} * w,
               packed_bits(32 * w, 32, bits, count, [&](std::uint32_t k) {
                 return indices[begin + k] & ((1u << bits) - 1);
               }));
  }
  const auto share = [&](std::uint32_t of) {
    return static_cast<std::uint32_t>(std::uint64_t{layer.shape.upper_words} * of / runs);
  };
  pack_upper(block, layer, indices, share(number), share(number + 1), words);

  shared.finite[block.thread()] = finite;
  block.sync();
  if (block.thread() == 0) {
    for (std::uint32_t t = 1; t < block.size(); ++t) finite = finite && shared.finite[t];
    task.finite[run] = finite ? 1 : 0;
  }
  block.sync();
}

// One layer's payload as it came from a rank.
struct EntryReader {
  const std::byte* payload;
  const SparseLayer* layer;

  THINWIRE_HOST_DEVICE const std::byte* word_at(std::uint32_t w) const {
    return payload + 8 + std::uint64_t{4} * w;
  }
  THINWIRE_HOST_DEVICE std::uint32_t directory(std::uint32_t run) const {
    return load_word(word_at(run));
  }
  THINWIRE_HOST_DEVICE std::uint32_t upper(std::uint32_t w) const {
    return load_word(word_at(layer->shape.directory_words + layer->shape.low_words + w));
  }
  // Entries before word `w` of the upper part.
  THINWIRE_HOST_DEVICE std::uint32_t entries_before(std::uint32_t w) const {
    std::uint32_t count = directory(w / kDirectoryRun);
    for (std::uint32_t i = w / kDirectoryRun * kDirectoryRun; i < w; ++i) {
      count += bits_set(upper(i));
    }
    return count;
  }
  THINWIRE_HOST_DEVICE std::uint32_t low(std::uint32_t j) const {
    const std::uint32_t bits = layer->shape.low_bits;
    if (bits == 0) return 0;
    const std::uint64_t bit = std::uint64_t{j} * bits;
    const auto w = static_cast<std::uint32_t>(bit / 32),
               shift = static_cast<std::uint32_t>(bit % 32);
    std::uint32_t value = load_word(word_at(layer->shape.directory_words + w)) >> shift;
    if (shift + bits > 32) {
      value |= load_word(word_at(layer->shape.directory_words + w + 1)) << (32 - shift);
    }
    return value & ((1u << bits) - 1);
  }
  THINWIRE_HOST_DEVICE float value(std::uint32_t j) const {
    const std::byte* const values = payload + entry_values_at(layer->shape);
    if (layer->form == EntryForm::kFloat32) {
      return float_of(load_word(values + std::uint64_t{4} * j));
    }
    if (layer->form != EntryForm::kSigns) {
      return widened(layer->form, load_half(values + std::uint64_t{2} * j));
    }
    const float scale = float_of(load_word(payload));
    return bit_of_plane(values, j) ? -scale : scale;
  }
  // The last run of the directory before which fewer than `bucket` upper values have passed, or the
  // first: entries of that upper value begin in it.
  THINWIRE_HOST_DEVICE std::uint32_t run_before(std::uint32_t bucket) const {
    std::uint32_t first = 0, last = layer->shape.directory_words;
    while (last - first > 1) {
      const std::uint32_t middle = first + (last - first) / 2;
      const std::uint32_t passed = 32 * kDirectoryRun * middle - directory(middle);
      (passed < bucket ? first : last) = middle;
    }
    return first;
  }
};

THINWIRE_HOST_DEVICE EntryReader reader_of(const SparseTask& task, const SparseLayer& layer,
                                           std::uint32_t rank) {
  return {task.arrived + rank * task.stride + layer.payload, &layer};
}

// Where a rank sent nothing finite of a layer, there were more such elements than it could send:
// then all of its elements count as NaN, see sparse_codec.cpp. Of drawn entries one NaN says so
// (randomk.cpp). Only looked for where something is not finite.
template <typename Context>
THINWIRE_HOST_DEVICE void find_poisoned(Context& block, EntriesShared& shared,
                                        const SparseTask& task, std::uint32_t part) {
  bool poisoned = false;
  if (task.words->not_finite != 0) {
    const SparseLayer& layer = task.layers[part % task.count];
    const bool drawn = layer.form == EntryForm::kDrawn;
    const EntryReader reader = reader_of(task, layer, part / task.count);
    bool fits = true;
    for (std::uint32_t j = block.thread(); j < layer.kept; j += block.size()) {
      if (drawn) {
        fits = fits && magnitude_bits(task.chosen[layer.first_entry + j]) <= kFloatInfinityBits;
      } else {
        fits = fits && !is_finite(reader.value(j));
      }
    }
    shared.finite[block.thread()] = fits;
    block.sync();
    bool all = true;
    for (std::uint32_t t = 0; t < block.size(); ++t) all = all && shared.finite[t];
    poisoned = all != drawn;
    block.sync();
  }
  if (block.thread() == 0) task.poisoned[part] = poisoned ? 1 : 0;
}

// Adds a rank's entries of a tile to shared.mean; each element has one at most.
template <typename Context>
THINWIRE_HOST_DEVICE void add_entries(const Context& block, EntriesShared& shared,
                                      const EntryReader& reader, const SparsePlace& place,
                                      std::uint32_t first_word) {
  const std::uint32_t bits = reader.layer->shape.low_bits;
  const std::uint32_t last_bucket = (place.begin + place.elements - 1) >> bits;
  for (std::uint32_t base = first_word; base < reader.layer->shape.upper_words;
       base += block.size()) {
    if (32 * base - reader.entries_before(base) > last_bucket) return;
    const std::uint32_t w = base + block.thread();
    if (w >= reader.layer->shape.upper_words) continue;
    std::uint32_t j = reader.entries_before(w);
    std::uint32_t word = reader.upper(w);
    for (std::uint32_t bit = 0; word != 0; ++bit, word >>= 1) {
      if ((word & 1u) == 0) continue;
      const std::uint32_t index = (32 * w + bit - j) << bits | reader.low(j);
      if (index >= place.begin && index - place.begin < place.elements) {
        shared.mean[index - place.begin] += reader.value(j);
      }
      ++j;
    }
  }
}

// Adds the entries of all ranks in their order. Returns whether one of them has spoilt the layer.
template <typename Context>
THINWIRE_HOST_DEVICE bool add_all_entries(Context& block, EntriesShared& shared,
                                          const SparseTask& task, const SparsePlace& place) {
  const SparseLayer& layer = task.layers[place.layer];
  bool poisoned = false;
  // A rank's first word each; more ranks than threads take turns.
  for (std::uint32_t base = 0; base < task.world; base += block.size()) {
    const std::uint32_t mine = base + block.thread();
    if (mine < task.world) {
      const std::uint32_t bucket = place.begin >> layer.shape.low_bits;
      shared.first_word[block.thread()] =
          kDirectoryRun * reader_of(task, layer, mine).run_before(bucket);
    }
    block.sync();
    for (std::uint32_t rank = base; rank < task.world && rank - base < block.size(); ++rank) {
      add_entries(block, shared, reader_of(task, layer, rank), place,
                  shared.first_word[rank - base]);
      poisoned = poisoned || task.poisoned[rank * task.count + place.layer] != 0;
      block.sync();
    }
  }
  return poisoned;
}

template <DType kType, bool kDrawn, typename Context>
THINWIRE_HOST_DEVICE void decode_entries_of_tile(Context& block, EntriesShared& shared,
                                                 const SparseTask& task, std::uint64_t tile) {
  const SparsePlace place = place_of(task, tile);
  const SparseLayer& layer = task.layers[place.layer];
  const std::uint64_t first = layer.value + place.begin;
  const bool counts = task.words->refused == 0 && task.words->not_finite == 0;
  const bool keeps = counts && layer.residual != nullptr && task.states[place.layer].finite != 0;
  for (std::uint32_t i = block.thread(); i < place.elements; i += block.size()) {
    if (keeps) layer.residual[place.begin + i] = task.lost[first + i];
    if (counts && layer.has_momentum) {
      layer.velocity[place.begin + i] = layer.new_velocity[place.begin + i];
    }
    shared.mean[i] = 0;
  }
  bool poisoned = false;
  if constexpr (kDrawn) {
    block.sync();
    spread_drawn(block, task, place, shared.mean);
    poisoned = task.poisoned[place.layer] != 0;
    block.sync();
  } else {
    poisoned = add_all_entries(block, shared, task, place);
  }
  for (std::uint32_t i = block.thread(); i < place.elements; i += block.size()) {
    float mean = kDrawn ? shared.mean[i] : shared.mean[i] / task.divisor;
    if (poisoned) mean = float_of(kFloatNanBits);
    store_element<kType>(task.values, first + i, mean);
  }
}

}  // namespace thinwire::kernels
