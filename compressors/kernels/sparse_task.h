// What the kernels work on that average layers of which few entries are sent (topk, ternary,
// randomk) in GPU memory: plain data, as piece_task.h. One launch works on all such layers of a
// bucket.
//
// Layers are cut into *tiles* of elements, their entries into *runs*; a block of threads takes one
// at a time. Both are numbered through the bucket. A rank's message is one frame, in which each
// layer's payload has a place of fixed size, whatever the entries are.
#pragma once

#include "thinwire/compressors/kernels/elias_fano.h"
#include "thinwire/compressors/kernels/piece_task.h"

namespace thinwire::kernels {

inline constexpr std::uint32_t kSparseTile = 2048;
inline constexpr std::uint32_t kEntryRun = 1024;

// How the values of entries travel: as topk stores them, or as ternary's one magnitude and a sign
// each; or as float32 without indices, where all ranks draw the same ones (randomk).
enum class EntryForm : std::uint8_t { kFloat32, kFloat16, kBFloat16, kSigns, kDrawn };

struct SparseLayer {
  EntryForm form;
  std::uint32_t numel, kept;  // elements, and entries that are sent, at least 1
  EliasFano shape;            // of the entries' indices
  std::uint64_t value;        // its first element in the bucket
  std::uint64_t first_tile, first_run;
  std::uint64_t first_entry;  // of all entries that this rank sends
  std::uint64_t payload;      // where it lies in a frame, a multiple of 16
  // Of kDrawn: whose random numbers, and whether values stand for their whole cell.
  std::uint32_t layer_id;
  bool unbiased;
  // Of what is owed; with momentum correction of what it keeps, without decay.
  float decay;
  std::int64_t reset_every;
  bool has_momentum, nesterov;
  float momentum;
  // Of its first element; null: none. -0 in both where nothing is known yet and there is momentum.
  float* residual;
  float* velocity;
  float* new_velocity;    // of this step
  const float* leftover;  // owed from steps in which the layer was corrected in the other way
  const float* orphan;    // see DevicePiece
};

// The selection of a layer under way.
struct SelectState {
  std::uint32_t kth;   // the bits of the k-th magnitude that are known so far
  std::uint32_t left;  // how many of those that share these bits are sent
  std::uint32_t finite;
};

inline constexpr std::uint32_t kSelectBins = 2048;
// Bits of a magnitude in a pass, the highest first: 11, 11, 9.
inline constexpr std::uint32_t kSelectPasses = 3;

// What a launch does.
enum class SparseStage : std::int32_t {
  kCorrect,  // tiles: adds what is owed; the first pass' histogram
  kPick,     // layers: where the k-th magnitude is, after `pass`
  kCount,    // tiles: the histogram of `pass`
  kTally,    // tiles: elements above the k-th magnitude, and of it
  kBefore,   // layers: these, of all tiles before
  kGather,   // tiles: the entries, in order
  kScale,    // layers: ternary's scale
  kPack,     // runs: the payload, and what it loses
  kDraw,   // runs: of kDrawn, in place of all after the first kPick: the values, and what they lose
  kLimit,  // runs: of kDrawn: whether their means can be decoded
  kPoisoned,  // layers of all ranks: whether what came is all that it says of the layer
  kDecode,    // tiles: keeps what was lost where the step counts, writes the mean
  kSpread,    // the same of kDrawn
};

struct SparseTask {
  const SparseLayer* layers;
  std::uint32_t count;
  std::uint64_t tiles, runs;
  std::uint32_t pass;
  DType dtype;   // of the bucket
  void* values;  // the bucket
  float* lost;   // as EncodeTask::lost
  float ranks;   // by which orphans are multiplied
  std::uint64_t seed, step;
  SelectState* states;   // by layer
  std::uint32_t* bins;   // kSelectBins a layer; all zero between exchanges
  std::uint32_t* tally;  // two a tile
  std::uint32_t* indices;
  float* chosen;          // by entry, as indices; of kDrawn then their means
  double* magnitudes;     // four a run: sums of ternary's
  float* scales;          // by layer
  std::uint32_t* finite;  // by run: whether as many values as there are ranks can be added
  std::byte* payload;     // of this rank's frame
  // Frames of all ranks, in their order: the first payload, and bytes from one to the next.
  const std::byte* arrived;
  std::uint64_t stride;
  std::uint32_t world;
  float divisor;
  std::uint32_t* poisoned;  // by rank and layer
  ExchangeWords* words;
};
static_assert(kIsPlain<SparseLayer> && kIsPlain<SelectState> && kIsPlain<SparseTask>);

// Bytes of a layer's payload: the number of entries or their magnitude, the indices in form 253,
// the values.
constexpr std::uint64_t entry_values_at(const EliasFano& shape) {
  return 8 + std::uint64_t{4} * shape.words();
}
constexpr std::uint64_t entry_payload_bytes(EntryForm form, const EliasFano& shape,
                                            std::uint64_t kept) {
  const std::uint64_t values = form == EntryForm::kSigns     ? (kept + 7) / 8
                               : form == EntryForm::kFloat32 ? 4 * kept
                                                             : 2 * kept;
  return entry_values_at(shape) + values;
}

}  // namespace thinwire::kernels
