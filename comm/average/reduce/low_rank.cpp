#include "thinwire/comm/average/reduce/low_rank.h"

#include <algorithm>
#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/float_arrays.h"
#include "thinwire/compressors/kernels/low_rank.h"

namespace thinwire::comm {
namespace {

// Elements of a block of rows.
constexpr auto kBlock = static_cast<std::size_t>(Partition::kCachedPiece);

}  // namespace

LowRank::LowRank(std::span<const Layer> layers, int iterations, const Peers& peers,
                 std::size_t chunk_bytes, const LowRankMemory& memory)
    : iterations_(iterations), memory_(memory) {
  std::vector<FactorPart> p_parts, q_parts;
  const auto mean_of = [&](std::span<const FactorPart> parts, const char* factor) {
    return std::make_unique<FactorMean>(parts, peers, chunk_bytes, memory_.steps, factor);
  };
  for (const Layer& layer : layers) {
    Matrix matrix;
    matrix.shape = low_rank_shape(layer.shape, DType::kFloat32, layer.rank);
    matrix.p = factors_;
    matrix.q = q_numel_;
    const std::size_t p = matrix.rows() * matrix.rank(), q = matrix.cols() * matrix.rank();
    factors_ += p;
    q_numel_ += q;
    matrices_.push_back(matrix);
    if (matrix.rank() == 0) continue;
    coded_ = coded_ || !layer.factors->traits().lossless;
    THINWIRE_ASSERT(p_parts.empty() || one_step_ == have_one_step(*layer.factors));
    one_step_ = have_one_step(*layer.factors);
    p_parts.push_back({static_cast<std::int64_t>(p), layer.factors, matrix.shape.rank});
    q_parts.push_back({static_cast<std::int64_t>(q), layer.factors, matrix.shape.rank});
  }
  if (q_numel_ > 0) q_mean_ = mean_of(q_parts, "Q");
  if (q_numel_ > 0 && iterations_ > 1) later_p_ = mean_of(p_parts, "later P");
  p_numel_ = factors_;
  for (std::size_t i = 0; i < matrices_.size(); ++i) {
    if (matrices_[i].rank() > 0) continue;
    matrices_[i].p = p_numel_;
    std::size_t numel = 1;
    for (const std::int64_t extent : layers[i].shape) numel *= static_cast<std::size_t>(extent);
    p_numel_ += numel;
    p_parts.push_back({static_cast<std::int64_t>(numel), &exact_factors()});
  }
  if (p_numel_ > 0) first_p_ = mean_of(p_parts, "P");
}

void LowRank::begin() {
  Arena& arena = context_.workspace->arena;
  p_ = arena.floats(p_numel_);
  q_ = arena.floats(q_numel_);
  own_q_ = arena.floats(q_numel_);
  lost_q_ = arena.floats(coded_ ? q_numel_ : 0);
  p_layers_.clear();
  q_layers_.clear();
  for (const bool low_rank : {true, false}) {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if ((matrices_[i].rank() > 0) != low_rank) continue;
      p_layers_.push_back(&layers_[i]);
      if (low_rank) q_layers_.push_back(&layers_[i]);
    }
  }
  averaged_ = {};
  load_warm_starts();
  multiply(0);
  first_p_->start(context_.stage(0), p_layers_, p_, {}, sizes_);
}

void LowRank::advance() {
  for (int round = 0; round < iterations_; ++round) {
    const auto number = 2 * static_cast<std::uint64_t>(round);
    if (round > 0) {
      multiply(round);
      later_p_->start(context_.stage(number), q_layers_, p_.first(factors_), {}, sizes_);
    }
    FactorMean& p_mean = round == 0 ? *first_p_ : *later_p_;
    p_mean.advance();
    if (q_.empty()) return;
    note(p_mean.finish());
    multiply_transposed();
    q_mean_->start(context_.stage(number + 1), q_layers_, q_, lost_q_, sizes_);
    q_mean_->advance();
    if (round + 1 < iterations_) finish_q();
  }
}

void LowRank::note(const Averaged& averaged) {
  averaged_.add_bytes(averaged);
  averaged_.finite = averaged_.finite && averaged.finite;
}

void LowRank::finish_q() {
  note(q_mean_->finish());
  if (coded_) kernels::subtract(own_q_, lost_q_.data());
}

Averaged LowRank::receive() {
  if (q_.empty()) {
    note(first_p_->finish());
  } else {
    finish_q();
  }
  if (!averaged_.finite || context_.refusal->any()) return averaged_;
  // No product of the factors is larger than this.
  const auto largest = [](std::span<const float> values) {
    float most = 0;
    for (const float value : values) most = std::max(most, std::fabs(value));
    return most;
  };
  for (const Matrix& m : matrices_) {
    const float bound = static_cast<float>(m.rank()) *
                        largest(p_.subspan(m.p, m.rows() * m.rank())) *
                        largest(q_.subspan(m.q, m.cols() * m.rank()));
    averaged_.finite = averaged_.finite && std::isfinite(bound);
  }
  return averaged_;
}

void LowRank::deliver(bool keep) {
  PhaseSpan span(context_, Phase::kDecompress);
  for (std::size_t i = 0; i < layers_.size(); ++i) reconstruct(layers_[i], matrices_[i], keep);
}

// Of the columns of a product with these factors, before they are made orthonormal: their lengths
// are about the singular values, and so are those of what they are multiplied to.
void LowRank::note_sizes(std::span<const float> factors) {
  if (!one_step_) return;
  const bool are_q = factors.data() == q_.data();
  sizes_.clear();
  for (const Matrix& m : matrices_) {
    const std::size_t length = are_q ? m.cols() : m.rows();
    const auto others = static_cast<double>(are_q ? m.rows() : m.cols());
    for (std::size_t c = 0; c < m.rank(); ++c) {
      double squares = 0;
      for (const float value : factors.subspan((are_q ? m.q : m.p) + c * length, length)) {
        squares += double{value} * value;
      }
      sizes_.push_back(static_cast<float>(std::sqrt(squares / others)));
    }
  }
}

void LowRank::multiply(int round) {
  PhaseSpan span(context_, Phase::kCompress);
  note_sizes(q_);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Matrix& m = matrices_[i];
    float* const q = q_.data() + m.q;
    // Orthonormal columns keep further rounds from drowning the smaller singular values.
    if (m.rank() > 0 && (round > 0 || one_step_)) kernels::orthogonalize(q, m.cols(), m.rank());
    if (round == 0) {
      first_multiply(layers_[i], m);
    } else if (m.rank() > 0) {
      kernels::low_rank_multiply(layers_[i].values.data(), m.rows(), m.cols(), q, m.rank(),
                                 p_.data() + m.p);
    }
  }
}

void LowRank::multiply_transposed() {
  PhaseSpan span(context_, Phase::kCompress);
  note_sizes(p_);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Matrix& m = matrices_[i];
    if (m.rank() == 0) continue;
    kernels::orthogonalize(p_.data() + m.p, m.rows(), m.rank());
    kernels::low_rank_multiply_transposed(layers_[i].values.data(), m.rows(), m.cols(),
                                          p_.data() + m.p, m.rank(), q_.data() + m.q);
  }
  std::ranges::copy(q_, own_q_.begin());
}

// P = M Q by blocks of rows, which are corrected in place on the way, or the layer itself where it
// travels as it is.
void LowRank::first_multiply(const LayerValues& layer, const Matrix& m) {
  float* const p = p_.data() + m.p;
  if (m.rank() == 0) {
    add_carried(layer, 0, p_.subspan(m.p, layer.values.size()));
    return;
  }
  for_each_block(m, [&](std::size_t row, std::size_t rows) {
    const auto block = layer.values.subspan(row * m.cols(), rows * m.cols());
    add_carried(layer, static_cast<std::int64_t>(row * m.cols()), block);
    kernels::low_rank_multiply(block.data(), rows, m.cols(), q_.data() + m.q, m.rank(),
                               block_p_.data());
    for (std::size_t c = 0; c < m.rank(); ++c) {
      std::copy_n(block_p_.data() + c * rows, rows, p + c * m.rows() + row);
    }
  });
}

// Calls visit(first row, rows) for blocks that fit the second-level cache.
template <typename Visit>
void LowRank::for_each_block(const Matrix& m, const Visit& visit) {
  const std::size_t most = std::max<std::size_t>(1, kBlock / m.cols());
  block_p_.resize(std::max(block_p_.size(), most * m.rank()));
  for (std::size_t row = 0; row < m.rows(); row += most) {
    visit(row, std::min(most, m.rows() - row));
  }
}

void LowRank::load_warm_starts() {
  std::vector<float> start;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Matrix& m = matrices_[i];
    if (m.rank() == 0) continue;
    const RandomKey key = random_key(context_, layers_[i], /*peer=*/0, /*stage=*/0, 0);
    const auto known = memory_.warm_starts.find(layers_[i].name);
    start.clear();
    if (known != memory_.warm_starts.end() && known->second.cols == m.shape.cols)
      start = known->second.q;
    resize_factor(key, m.shape.cols, static_cast<std::int64_t>(start.size()) / m.shape.cols,
                  m.shape.rank, start);
    std::ranges::copy(start, q_.begin() + static_cast<std::ptrdiff_t>(m.q));
  }
}

// The mean of a layer, block by block; what the own factors miss of this rank's matrix before that.
void LowRank::reconstruct(const LayerValues& layer, const Matrix& m, bool keep) {
  const float* const p = p_.data() + m.p;
  if (m.rank() == 0) {
    if (keep) std::ranges::fill(layer.kept, 0.0f);
    std::copy_n(p, layer.values.size(), layer.values.begin());
    return;
  }
  for_each_block(m, [&](std::size_t row, std::size_t rows) {
    for (std::size_t c = 0; c < m.rank(); ++c) {
      std::copy_n(p + c * m.rows() + row, rows, block_p_.data() + c * rows);
    }
    const std::size_t begin = row * m.cols();
    const auto values = layer.values.subspan(begin, rows * m.cols());
    const float* const mean_q = q_.data() + m.q;
    if (!keep || layer.kept.empty()) {
      kernels::low_rank_reconstruct(block_p_.data(), mean_q, rows, m.cols(), m.rank(),
                                    values.data());
      return;
    }
    block_.resize(std::max(block_.size(), values.size()));
    const auto lost = std::span(block_).first(values.size());
    kernels::low_rank_replace(block_p_.data(), own_q_.data() + m.q, mean_q, rows, m.cols(),
                              m.rank(), values.data(), lost.data());
    if (kernels::all_finite(lost)) {
      kernels::copy_past_cache(lost, layer.kept.data() + begin);
    }
  });
}

void LowRank::commit() {
  for (FactorMean* mean : {first_p_.get(), later_p_.get(), q_mean_.get()}) {
    if (mean) mean->commit();
  }
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Matrix& m = matrices_[i];
    if (m.rank() == 0) continue;
    auto known = memory_.warm_starts.find(layers_[i].name);
    if (known == memory_.warm_starts.end()) {
      known = memory_.warm_starts.emplace(layers_[i].name, WarmStart{}).first;
    }
    const auto first = q_.begin() + static_cast<std::ptrdiff_t>(m.q);
    known->second.cols = m.shape.cols;
    known->second.q.assign(first, first + static_cast<std::ptrdiff_t>(m.cols() * m.rank()));
  }
}

}  // namespace thinwire::comm
