#include "thinwire/comm/average/reduce/low_rank.h"

#include <algorithm>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/float_arrays.h"
#include "thinwire/compressors/kernels/low_rank.h"

namespace thinwire::comm {
namespace {

// Elements of a block of rows.
constexpr auto kBlock = static_cast<std::size_t>(Partition::kCachedPiece);

}  // namespace

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

Averaged LowRank::run(const ReductionContext& context, std::span<const LayerValues> layers) {
  load_warm_starts(context, layers);
  Averaged averaged;
  std::size_t& sent = averaged.sent;
  for (int round = 0; round < iterations_; ++round) {
    if (round > 0 && q_.empty()) break;
    {
      Timeline::Span span(context.timeline, context.track, "COMPRESS");
      for (std::size_t i = 0; i < layers.size(); ++i) {
        const Matrix& m = matrices_[i];
        if (round == 0) {
          first_multiply(layers[i], m);
        } else if (m.rank() > 0) {
          float* const q = q_.data() + m.q;
          // Orthonormal columns keep further rounds from drowning the smaller singular values.
          kernels::orthogonalize(q, m.cols(), m.rank());
          kernels::low_rank_multiply(corrected(layers[i]).data(), m.rows(), m.cols(), q, m.rank(),
                                     p_.data() + m.p);
        }
      }
    }
    const auto number = 2 * static_cast<std::uint64_t>(round);
    sent += round == 0 ? first_p_->run(context.stage(number), p_)
                       : later_p_->run(context.stage(number), std::span(p_).first(factors_));
    if (q_.empty()) continue;
    {
      Timeline::Span span(context.timeline, context.track, "COMPRESS");
      for (std::size_t i = 0; i < layers.size(); ++i) {
        const Matrix& m = matrices_[i];
        if (m.rank() == 0) continue;
        kernels::orthogonalize(p_.data() + m.p, m.rows(), m.rank());
        kernels::low_rank_multiply_transposed(corrected(layers[i]).data(), m.rows(), m.cols(),
                                              p_.data() + m.p, m.rank(), q_.data() + m.q);
      }
    }
    own_q_ = q_;
    sent += q_mean_->run(context.stage(number + 1), q_);
  }
  if (!context.refusal->any()) averaged.finite = reconstruct(context, layers);
  return averaged;
}

// P = M Q by blocks of rows, which are corrected on the way, or the layer itself where it travels
// as it is.
void LowRank::first_multiply(const LayerValues& layer, const Matrix& m) {
  float* const p = p_.data() + m.p;
  if (m.rank() == 0) {
    add_carried(layer, 0, std::span(p, layer.values.size()));
    return;
  }
  for_each_block(m, [&](std::size_t row, std::size_t rows) {
    const auto block = corrected(layer).subspan(row * m.cols(), rows * m.cols());
    add_carried(layer, static_cast<std::int64_t>(row * m.cols()), block);
    kernels::low_rank_multiply(block.data(), rows, m.cols(), q_.data() + m.q, m.rank(),
                               block_p_.data());
    for (std::size_t c = 0; c < m.rank(); ++c) {
      std::copy_n(block_p_.data() + c * rows, rows, p + c * m.rows() + row);
    }
  });
}

// Where the corrected gradient is: in the residual's memory, where one is kept.
std::span<float> LowRank::corrected(const LayerValues& layer) {
  return layer.residual.empty() ? layer.values : layer.residual;
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

void LowRank::load_warm_starts(const ReductionContext& context,
                               std::span<const LayerValues> layers) {
  std::vector<float> start;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Matrix& m = matrices_[i];
    if (m.rank() == 0) continue;
    const RandomKey key = random_key(context, layers[i], /*peer=*/0, /*stage=*/0, 0);
    const auto known = warm_starts_.find(layers[i].name);
    start.clear();
    if (known != warm_starts_.end() && known->second.cols == m.shape.cols) start = known->second.q;
    resize_factor(key, m.shape.cols, static_cast<std::int64_t>(start.size()) / m.shape.cols,
                  m.shape.rank, start);
    std::ranges::copy(start, q_.begin() + static_cast<std::ptrdiff_t>(m.q));
  }
}

// Whether all means are finite.
bool LowRank::reconstruct(const ReductionContext& context, std::span<const LayerValues> layers) {
  Timeline::Span span(context.timeline, context.track, "DECOMPRESS");
  bool finite = true;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Matrix& m = matrices_[i];
    const LayerValues& layer = layers[i];
    const float* const p = p_.data() + m.p;
    if (m.rank() == 0) {
      std::ranges::fill(layer.residual, 0.0f);
      std::copy_n(p, layer.values.size(), layer.values.begin());
      finite = finite && kernels::all_finite(layer.values);
      continue;
    }
    for_each_block(m, [&](std::size_t row, std::size_t rows) {
      for (std::size_t c = 0; c < m.rank(); ++c) {
        std::copy_n(p + c * m.rows() + row, rows, block_p_.data() + c * rows);
      }
      const auto mean = layer.values.subspan(row * m.cols(), rows * m.cols());
      if (!layer.residual.empty()) {
        kernels::low_rank_reconstruct(block_p_.data(), own_q_.data() + m.q, rows, m.cols(),
                                      m.rank(), mean.data());
        const auto rest = layer.residual.subspan(row * m.cols(), rows * m.cols());
        kernels::subtract(rest, mean.data());
        note_residual(layer, rest);
      }
      kernels::low_rank_reconstruct(block_p_.data(), q_.data() + m.q, rows, m.cols(), m.rank(),
                                    mean.data());
      finite = finite && kernels::all_finite(mean);
    });
  }
  return finite;
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
