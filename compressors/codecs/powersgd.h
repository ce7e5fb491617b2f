// Low rank: a matrix M [rows, cols] travels as P [rows, r] and Q [cols, r], M ~ P Qᵀ with P
// orthonormal.
//
// Vogels et al., "PowerSGD", NeurIPS 2019. As a codec it starts from a random Q (the same on all
// ranks) and sends both factors. A reduction does better: it keeps the Q of the step before (the
// warm start), averages P over the ranks, orthogonalises, averages Q; for it the functions below
// stand alone. kernels/low_rank.h has the products and the layout of factors in memory.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

inline constexpr int kMaxPowerSgdRank = 1024;

struct PowerSgdOptions {
  int rank = 4;                  // 1 to kMaxPowerSgdRank
  int iterations = 1;            // rounds of P = M Q, Q = Mᵀ P; 1 to 16
  std::string factors = "fp32";  // see factor_codec()
};

// `powersgd(rank=4, iterations=1, factors=fp32|bf16|int8|int4|ecsq(bits=F))`
//
// int8 and int4 are those of quantize with norm=linf and a header for 256 elements, ecsq so many
// bits an element of the factors, entropy-coded. Coded factors are sent as they are multiplied;
// what is made orthonormal of P, is what was decoded.
CodecPtr make_powersgd(const Spec& spec);
PowerSgdOptions powersgd_options(const Spec& spec);

// How a layer is cut into a matrix.
struct LowRankShape {
  std::int64_t rows = 0, cols = 0;
  std::int64_t rank = 0;  // min(rank asked for, rows, cols); 0: the layer travels uncompressed

  std::int64_t factor_numel() const { return (rows + cols) * rank; }
};

// A layer of two or more dimensions is [shape[0], all others]. It pays where the float32 factors
// take fewer bytes than the layer in `dtype`; layers of one dimension never do.
LowRankShape low_rank_shape(std::span<const std::int64_t> shape, DType dtype, int rank);

// The codec of a factor: lossless, or of fixed size, deterministic and the same on all ranks.
// Throws InvalidArgument for anything but fp32, bf16, int8, int4 and ecsq(bits=F).
CodecPtr factor_codec(std::string_view factors);
// Of factors that travel as they are.
const Codec& exact_factors();
// What both factors take.
std::size_t factor_bytes(const LowRankShape& shape, const Codec& factors);
// Whether factors are coded with one step for all layers, see ecsq.h.
bool have_one_step(const Codec& factors);

// Random numbers of mean 0 and variance 1 for columns first … first + count − 1 of Q, each `cols`
// long: a sum of four uniform numbers, so that no processor's logarithm matters. They follow from
// seed, step and layer of the key, not from its rank: all ranks get the same.
void init_factor(const RandomKey& key, std::int64_t cols, std::int64_t first, std::int64_t count,
                 std::span<float> q);

// Brings a warm start `q` (old_rank columns) to `rank` columns: the first ones stay, missing ones
// are drawn with init_factor(). Columns that are zero, as dependent ones become, are drawn anew, so
// that they can take part again.
void resize_factor(const RandomKey& key, std::int64_t cols, std::int64_t old_rank,
                   std::int64_t rank, std::vector<float>& q);

}  // namespace thinwire
