#include "thinwire/comm/reductions/low_rank.h"

#include <algorithm>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/low_rank.h"

namespace thinwire::comm {

LowRank::LowRank(std::span<const Layer> layers, int iterations, const Peers& peers,
                 std::size_t chunk_bytes, WarmStarts& warm_starts)
    : iterations_(iterations), warm_starts_(warm_starts) {
  std::size_t q_numel = 0;
  for (const Layer& layer : layers) {
    Matrix matrix;
    matrix.shape = low_rank_shape(layer.shape, DType::kFloat32, layer.rank);
    matrix.p = factors_;
    matrix.q = q_numel;
    factors_ += matrix.rows() * matrix.rank();
    q_numel += matrix.cols() * matrix.rank();
    matrices_.push_back(matrix);
  }
  std::size_t p_numel = factors_;
  for (std::size_t i = 0; i < matrices_.size(); ++i) {
    if (matrices_[i].rank() > 0) continue;
    matrices_[i].p = p_numel;
    std::size_t numel = 1;
    for (const std::int64_t extent : layers[i].shape) numel *= static_cast<std::size_t>(extent);
    p_numel += numel;
  }
  p_.resize(p_numel);
  q_.resize(q_numel);
  const auto mean_of = [&](std::size_t numel) {
    return std::make_unique<ExactMean>(static_cast<std::int64_t>(numel), peers, chunk_bytes);
  };
  if (p_numel > 0) first_p_ = mean_of(p_numel);
  if (q_numel == 0) return;
  q_mean_ = mean_of(q_numel);
  if (iterations_ > 1) later_p_ = mean_of(factors_);
}

std::size_t LowRank::run(const Exchange& exchange, std::span<const LayerValues> layers) {
  load_warm_starts(exchange, layers);
  std::size_t sent = 0;
  for (int round = 0; round < iterations_; ++round) {
    if (round > 0 && q_.empty()) break;
    {
      Timeline::Span span(exchange.timeline, exchange.track, "COMPRESS");
      for (std::size_t i = 0; i < layers.size(); ++i) {
        const Matrix& m = matrices_[i];
        float* const p = p_.data() + m.p;
        if (m.rank() == 0) {
          if (round == 0) std::ranges::copy(layers[i].values, p);
          continue;
        }
        float* const q = q_.data() + m.q;
        // Orthonormal columns keep further rounds from drowning the smaller singular values.
        if (round > 0) kernels::orthogonalize(q, m.cols(), m.rank());
        kernels::low_rank_multiply(layers[i].values.data(), m.rows(), m.cols(), q, m.rank(), p);
      }
    }
    const auto number = 2 * static_cast<std::uint64_t>(round);
    sent += round == 0 ? first_p_->run(exchange.stage(number), p_)
                       : later_p_->run(exchange.stage(number), std::span(p_).first(factors_));
    if (q_.empty()) continue;
    {
      Timeline::Span span(exchange.timeline, exchange.track, "COMPRESS");
      for (std::size_t i = 0; i < layers.size(); ++i) {
        const Matrix& m = matrices_[i];
        if (m.rank() == 0) continue;
        kernels::orthogonalize(p_.data() + m.p, m.rows(), m.rank());
        kernels::low_rank_multiply_transposed(layers[i].values.data(), m.rows(), m.cols(),
                                              p_.data() + m.p, m.rank(), q_.data() + m.q);
      }
    }
    own_q_ = q_;
    sent += q_mean_->run(exchange.stage(number + 1), q_);
  }
  if (!exchange.refusal->any()) reconstruct(exchange, layers);
  return sent;
}

void LowRank::load_warm_starts(const Exchange& exchange, std::span<const LayerValues> layers) {
  std::vector<float> start;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Matrix& m = matrices_[i];
    if (m.rank() == 0) continue;
    const RandomKey key = random_key(exchange, layers[i], /*peer=*/0, /*stage=*/0, 0);
    const auto known = warm_starts_.find(layers[i].name);
    start.clear();
    if (known != warm_starts_.end() && known->second.cols == m.shape.cols) start = known->second.q;
    resize_factor(key, m.shape.cols, static_cast<std::int64_t>(start.size()) / m.shape.cols,
                  m.shape.rank, start);
    std::ranges::copy(start, q_.begin() + static_cast<std::ptrdiff_t>(m.q));
  }
}

void LowRank::reconstruct(const Exchange& exchange, std::span<const LayerValues> layers) {
  Timeline::Span span(exchange.timeline, exchange.track, "DECOMPRESS");
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Matrix& m = matrices_[i];
    const std::span<float> values = layers[i].values;
    const std::span<float> residual = layers[i].residual;
    const float* const p = p_.data() + m.p;
    if (m.rank() == 0) {
      for (std::size_t j = 0; j < residual.size(); ++j) residual[j] = 0;
      std::copy(p, p + values.size(), values.begin());
      continue;
    }
    if (!residual.empty()) {
      kernels::low_rank_reconstruct(p, own_q_.data() + m.q, m.rows(), m.cols(), m.rank(),
                                    residual.data());
      for (std::size_t j = 0; j < residual.size(); ++j) residual[j] = values[j] - residual[j];
    }
    kernels::low_rank_reconstruct(p, q_.data() + m.q, m.rows(), m.cols(), m.rank(), values.data());
  }
}

void LowRank::commit(std::span<const LayerValues> layers) {
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Matrix& m = matrices_[i];
    if (m.rank() == 0) continue;
    auto known = warm_starts_.find(layers[i].name);
    if (known == warm_starts_.end()) {
      known = warm_starts_.emplace(layers[i].name, WarmStart{}).first;
    }
    const auto first = q_.begin() + static_cast<std::ptrdiff_t>(m.q);
    known->second.cols = m.shape.cols;
    known->second.q.assign(first, first + static_cast<std::ptrdiff_t>(m.cols() * m.rank()));
  }
}

}  // namespace thinwire::comm
