// Averaging matrices by their low-rank factors: PowerSGD's two all-reduces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "thinwire/comm/average/memory/shared_steps.h"
#include "thinwire/comm/average/memory/warm_start.h"
#include "thinwire/comm/average/reduce/factor_mean.h"
#include "thinwire/comm/average/reduce/reduction.h"
#include "thinwire/compressors/codecs/powersgd.h"

namespace thinwire::comm {

// What it keeps from step to step, all of which outlives the reduction.
struct LowRankMemory {
  WarmStarts& warm_starts;
  SharedSteps& steps;
};

// Terms: M_i the corrected gradient of rank i as [rows, cols], r the rank.
//
//   1. P_i = M_i Q, with the Q of the step before; P = mean of the P_i, of all layers in one
//      all_reduce; P is made orthonormal;
//   2. Q_i = M_iᵀ P; Q = mean of the Q_i, of all layers in another;
//   3. with more iterations again, from Q made orthonormal;
//   4. the mean is P Qᵀ; rank i's own reconstruction is P Q_iᵀ, whose mean over the ranks it is, so
//      that residuals and updates together hold every gradient.
//
// Factors travel as the codec says (FactorMean). A P that coding changed is as good as another: it
// is made orthonormal after that, and all ranks hold the same. What coding loses of Q, on the way
// there and back, is in Q_i: a rank's reconstruction is that of what counts as sent. Where all have
// one step (ecsq), Q is made orthonormal before the first product, too: an error of P counts for as
// much in every column then. Layers that low rank would not make smaller travel as they are, with
// the first P of the others. Bytes sent by a rank: 2 (W − 1) / W of both factors, coded, for each
// iteration.
//
// A warm start with fewer columns than asked for is extended by random ones, equal on all ranks;
// one with more gives its first. Vogels et al., "PowerSGD", NeurIPS 2019, algorithms 1 and 2.
class LowRank final : public Reduction {
 public:
  struct Layer {
    std::vector<std::int64_t> shape;
    int rank = 4;
    const Codec* factors = nullptr;  // lives as long as the object; null for rank 0
  };

  // `iterations` is that of all layers. Either all layers' factors have one step, and the same
  // codec, or none. The memory is written by commit() only.
  LowRank(std::span<const Layer> layers, int iterations, const Peers& peers,
          std::size_t chunk_bytes, const LowRankMemory& memory);

  void advance() override;
  Averaged receive() override;
  void deliver(bool keep) override;
  void commit() override;
  std::size_t bytes() const override {
    return (block_p_.capacity() + block_.capacity()) * sizeof(float);
  }

  // Where a layer's factors begin among those of all; one of rank 0 is all P, behind the others'.
  struct Matrix {
    LowRankShape shape;
    std::size_t p = 0, q = 0;
    std::size_t rows() const { return static_cast<std::size_t>(shape.rows); }
    std::size_t cols() const { return static_cast<std::size_t>(shape.cols); }
    std::size_t rank() const { return static_cast<std::size_t>(shape.rank); }
  };
  // By layer.
  const std::vector<Matrix>& matrices() const { return matrices_; }
  int iterations() const { return iterations_; }
  // Floats of all P and all Q.
  std::size_t p_numel() const { return p_numel_; }
  std::size_t q_numel() const { return q_numel_; }
  // Of the means of P in the first round and in later ones, and of Q; null where there is nothing.
  const FactorMean* first_p() const { return first_p_.get(); }
  const FactorMean* later_p() const { return later_p_.get(); }
  const FactorMean* q_mean() const { return q_mean_.get(); }

 private:
  void begin() override;
  void load_warm_starts();
  void note_sizes(std::span<const float> factors);
  void multiply(int round);
  void first_multiply(const LayerValues& layer, const Matrix& m);
  void multiply_transposed();
  void note(const Averaged& averaged);
  void finish_q();
  void reconstruct(const LayerValues& layer, const Matrix& m, bool keep);
  template <typename Visit>
  void for_each_block(const Matrix& m, const Visit& visit);

  const int iterations_;
  std::vector<Matrix> matrices_;
  std::size_t factors_ = 0;  // floats of p_ that are factors; dense layers follow
  std::size_t p_numel_ = 0, q_numel_ = 0;
  bool coded_ = false;
  bool one_step_ = false;                                // of all factors
  std::vector<const LayerValues*> p_layers_, q_layers_;  // whose factors follow one another
  // Of the exchange in progress, all layers; own_q_: what this rank sent; lost_q_: what of its own
  // it did not.
  std::span<float> p_, q_, own_q_, lost_q_;
  std::vector<float> sizes_;  // expected of the columns of the next mean, where they have one step
  Averaged averaged_;
  std::vector<float> block_p_, block_;  // of the block of rows being worked on
  std::unique_ptr<FactorMean> first_p_, later_p_, q_mean_;
  LowRankMemory memory_;
};

}  // namespace thinwire::comm
