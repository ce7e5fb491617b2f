// What the kernels work on that average matrices by their low-rank factors (powersgd) in GPU
// memory: plain data, as piece_task.h. One launch works on all such layers of an exchange.
//
// M [rows, cols] ~ P Qᵀ; factors are stored by columns, see low_rank.h. Matrices are cut in three
// ways, each into tiles that are numbered through the table and of which a block of threads takes
// one at a time: rows of M for P = M Q, columns of M for Q = Mᵀ P, and both for the mean.
#pragma once

#include "thinwire/compressors/kernels/piece_task.h"

namespace thinwire::kernels {

inline constexpr std::uint32_t kRowsOfTile = 16;     // of M, all of their elements
inline constexpr std::uint32_t kColumnsOfTile = 32;  // the same of columns
inline constexpr std::uint32_t kMeanRows = 4, kMeanColumns = 1024;
inline constexpr std::uint32_t kUnfactoredTile = 4096;  // elements of a layer without factors

// A layer that low rank would not make smaller has rank 0 and travels in P as it is, one row long.
struct LowRankLayer {
  std::uint64_t rows, cols;
  std::uint32_t rank;
  std::uint32_t layer_id;
  std::uint64_t value;  // its first element in the bucket
  std::uint64_t p, q;   // where its factors begin among those of all layers
  std::uint64_t first_row_tile, first_column_tile, first_mean_tile;
  // As DevicePiece's.
  float decay;
  std::int64_t reset_every;
  float* residual;
  const float* orphan;
  const float* leftover;
  bool keeps_loss;
  // By element of Q, what coding loses of this rank's and of the means that it owns; null: nothing.
  float* lost_q;
  float* lost_mean_q;
  // The Q of the step before; columns that are not known are -0. At least `rank` of them.
  float* start;
  std::uint32_t start_columns;
};

// What a launch does.
enum class LowRankStage : std::int32_t {
  kStart,        // matrices: Q from the step before, random where that has nothing
  kMultiply,     // tiles of rows: adds what is owed; P = M Q
  kOrthonormal,  // matrices: P, or Q
  kTransposed,   // tiles of columns: Q = Mᵀ P
  kSent,         // matrices: what counts as sent of Q; whether the mean's elements are finite
  kReplace,      // tiles of both: keeps what was lost where the step counts, writes the mean
  kKeepStart,    // matrices: Q for the next step
};

struct LowRankTask {
  const LowRankLayer* layers;  // those with a rank first
  std::uint32_t matrices;      // how many of them have one
  std::uint32_t count;
  std::uint64_t row_tiles, column_tiles, mean_tiles;
  DType dtype;    // of the bucket
  void* values;   // the bucket
  float* matrix;  // of its size, and the bucket itself where that is float32: corrected gradients
  float ranks;    // by which orphans are multiplied
  std::uint64_t seed, step;
  bool corrects;  // the first round: `matrix` is made
  bool of_q;      // Q is what is made orthonormal
  float* p;
  float* q;
  float* own_q;  // what this rank sent of Q
  ExchangeWords* words;
};
static_assert(kIsPlain<LowRankLayer> && kIsPlain<LowRankTask>);

}  // namespace thinwire::kernels
