#include "thinwire/moe/merge/dedup.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "thinwire/common/error.h"
#include "thinwire/common/stopwatch.h"

namespace thinwire::moe {
namespace {

// Weight of the past in the calibration sums and in the guard's expectation.
constexpr double kDecay = 0.9;
// A guard that refuses tries again after so many steps: the rows may have become more similar.
constexpr std::int64_t kRetry = 100;

std::vector<lsh::HashCode> hash_tokens(const lsh::CrossPolytopeHash& hash,
                                       const at::Tensor& tokens) {
  const auto count = tokens.size(0);
  const auto dim = static_cast<std::size_t>(tokens.size(1));
  const auto hashes = static_cast<std::size_t>(hash.hashes());
  std::vector<lsh::HashCode> codes(static_cast<std::size_t>(count) * hashes);
  const float* data = tokens.const_data_ptr<float>();
  at::parallel_for(0, count, 256, [&](std::int64_t begin, std::int64_t end) {
    const auto first = static_cast<std::size_t>(begin);
    const auto n = static_cast<std::size_t>(end - begin);
    hash.hash({data + first * dim, n * dim}, {codes.data() + first * hashes, n * hashes});
  });
  return codes;
}

template <typename T>
lsh::Clustering cluster(const at::Tensor& tokens, const lsh::GroupedRows& rows,
                        std::span<const lsh::Labels> prefixes, const lsh::ClusterOptions& options,
                        at::Tensor& centroids) {
  std::vector<T> values;
  const auto result =
      lsh::cluster_rows<T>({tokens.const_data_ptr<T>(), static_cast<std::size_t>(tokens.numel())},
                           tokens.size(1), rows, prefixes, options, values);
  centroids = at::empty({result.labels.count, tokens.size(1)}, tokens.options());
  std::copy(values.begin(), values.end(), centroids.data_ptr<T>());
  return result;
}

at::Tensor pick(const at::Tensor& values, const std::vector<std::int32_t>& index) {
  return values.index_select(0, index_tensor(index, values.device()));
}

// A cluster of one is its token, also for other experts; a larger one is unlike all others.
std::vector<std::int64_t> keys_of(const TokenLayout& layout,
                                  const std::vector<std::int32_t>& cluster,
                                  const std::vector<std::int32_t>& size) {
  std::vector<std::int64_t> keys(size.size(), -1);
  const std::int64_t kinds = layout.experts() + 1;
  for (std::int64_t e = 0; e < layout.experts(); ++e) {
    const auto expert = static_cast<std::size_t>(e);
    for (auto r = layout.expert_begin[expert]; r < layout.expert_begin[expert + 1]; ++r) {
      const auto row = static_cast<std::size_t>(r);
      const auto c = static_cast<std::size_t>(cluster[row]);
      if (keys[c] < 0) keys[c] = layout.token[row] * kinds + (size[c] > 1 ? 1 + e : 0);
    }
  }
  return keys;
}

std::vector<std::int32_t> compose(const std::vector<std::int32_t>& of,
                                  const std::vector<std::int32_t>& rows) {
  std::vector<std::int32_t> result(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) result[i] = of[static_cast<std::size_t>(rows[i])];
  return result;
}

}  // namespace

Dedup::Dedup(const DedupOptions& options, std::int64_t dim, std::uint32_t layer, std::uint64_t seed)
    : options_(options), dim_(dim), layer_(layer), seed_(seed) {
  check(options.compensation >= 0 && options.compensation <= 1,
        "the compensation factor must lie in [0, 1], got ", options.compensation);
  check(options.probes >= 1, "calibration needs at least one probe, got ", options.probes);
  check(options.bandwidth >= 0 && options.hash_rate > 0,
        "the guard needs a bandwidth of at least 0 and a hash rate above 0, got ",
        options.bandwidth, " and ", options.hash_rate);
  if (options_.hash_dim > dim) options_.hash_dim = dim;
  lsh::PrefixChoice& choice = options_.clusters.choice;
  choice.prefix = std::min(choice.prefix, options_.hashes);
  // Checkpoints hold the options as text: what a text cannot say is refused here, not when loading.
  parse_dedup(spec_of(options_));
  draw_rotations();
}

void Dedup::refresh() {
  ++generation_;
  draw_rotations();
}

void Dedup::draw_rotations() {
  if (options_.method != DedupOptions::Method::kLsh) return;
  hash_ =
      std::make_unique<lsh::CrossPolytopeHash>(dim_, lsh::HashOptions{.hashes = options_.hashes,
                                                                      .hash_dim = options_.hash_dim,
                                                                      .rotation = options_.rotation,
                                                                      .seed = seed_,
                                                                      .layer = layer_,
                                                                      .generation = generation_});
}

MergedRows Dedup::unmerged(const at::Tensor& tokens, const TokenLayout& layout) const {
  MergedRows merged;
  merged.rows = map_rows(tokens, layout.gather());
  for (std::size_t e = 0; e + 1 < layout.expert_begin.size(); ++e) {
    merged.expert_rows.push_back(layout.expert_begin[e + 1] - layout.expert_begin[e]);
  }
  merged.cluster.resize(layout.token.size());
  std::iota(merged.cluster.begin(), merged.cluster.end(), 0);
  merged.size.assign(layout.token.size(), 1);
  merged.keys = keys_of(layout, merged.cluster, merged.size);
  merged.counters.rows = merged.counters.rows_sent = layout.rows();
  return merged;
}

at::Tensor Dedup::state() const {
  return at::tensor({static_cast<double>(steps_), static_cast<double>(generation_), global_sums_[0],
                     global_sums_[1]},
                    at::kDouble);
}

at::Tensor Dedup::guard_state() const {
  return at::tensor({expected_saving_, static_cast<double>(refused_)}, at::kDouble);
}

void Dedup::load_state(const at::Tensor& state) {
  check(state.numel() == 4 && state.scalar_type() == at::kDouble,
        "the state of merging rows has 4 numbers of Double, got shape ", state.sizes(), " of ",
        toString(state.scalar_type()));
  const at::Tensor values = state.cpu().contiguous();
  const double* data = values.const_data_ptr<double>();
  steps_ = static_cast<std::int64_t>(data[0]);
  generation_ = static_cast<std::uint64_t>(data[1]);
  global_sums_ = {data[2], data[3]};
  local_sums_ = {};
  expected_saving_ = 1.0;
  refused_ = 0;
  draw_rotations();
}

void Dedup::load_guard_state(const at::Tensor& state) {
  check(state.numel() == 2 && state.scalar_type() == at::kDouble,
        "the state of the guard has 2 numbers of Double, got shape ", state.sizes(), " of ",
        toString(state.scalar_type()));
  const at::Tensor values = state.cpu().contiguous();
  expected_saving_ = values.const_data_ptr<double>()[0];
  refused_ = static_cast<std::int64_t>(values.const_data_ptr<double>()[1]);
}

bool Dedup::guard_refuses(std::int64_t tokens, std::int64_t rows, std::int64_t bytes_per_row) {
  if (options_.bandwidth == 0) return false;
  const double cost = static_cast<double>(tokens * dim_) / options_.hash_rate;
  const double saving =
      expected_saving_ * static_cast<double>(rows * bytes_per_row) / options_.bandwidth;
  if (saving > cost) return false;
  if (++refused_ % kRetry != 0) return true;
  expected_saving_ = 1.0;
  return static_cast<double>(rows * bytes_per_row) / options_.bandwidth <= cost;
}

MergedRows Dedup::merge(const at::Tensor& tokens, const TokenLayout& layout, bool is_training,
                        std::int64_t bytes_per_row) {
  using Method = DedupOptions::Method;
  const bool warm = !is_training || steps_ >= options_.start_after;
  const bool wanted =
      options_.method != Method::kOff && warm && (is_training || options_.in_evaluation);
  if (is_training) ++steps_;
  if (!wanted) return unmerged(tokens, layout);
  if (options_.method == Method::kLsh &&
      guard_refuses(layout.tokens, layout.rows(), bytes_per_row)) {
    MergedRows merged = unmerged(tokens, layout);
    merged.counters.refused_by_guard = true;
    return merged;
  }

  const auto start = Clock::now();
  const at::Tensor host = tokens.detach().cpu().contiguous();
  const lsh::GroupedRows rows{layout.token, layout.expert_begin};
  lsh::Clustering result;
  at::Tensor centroids;
  std::vector<std::int32_t> probes;
  if (options_.method == Method::kDuplicates) {
    const auto* bytes = static_cast<const std::byte*>(host.const_data_ptr());
    const lsh::Labels labels[] = {lsh::duplicate_labels(
        {bytes, host.nbytes()}, static_cast<std::int64_t>(host.element_size()) * dim_, rows)};
    result.labels = labels[0];
    result.size.assign(static_cast<std::size_t>(labels[0].count), 0);
    result.group_clusters.assign(static_cast<std::size_t>(rows.groups()), 0);
    // All members are equal: the first stands for them, not a mean that could round.
    std::vector<std::int32_t> first;
    for (std::int64_t g = 0; g < rows.groups(); ++g) {
      const auto group = static_cast<std::size_t>(g);
      for (auto r = layout.expert_begin[group]; r < layout.expert_begin[group + 1]; ++r) {
        const auto row = static_cast<std::size_t>(r);
        const auto c = static_cast<std::size_t>(labels[0].of_row[row]);
        if (result.size[c]++ > 0) continue;
        first.push_back(layout.token[row]);
        ++result.group_clusters[group];
      }
    }
    centroids = pick(host, first);
  } else {
    const auto codes = hash_tokens(*hash_, host.to(at::kFloat));
    const lsh::PrefixChoice& choice = options_.clusters.choice;
    const bool fixed = choice.rule == lsh::PrefixChoice::Rule::kFixed;
    std::vector<lsh::Labels> prefixes;
    if (fixed) {
      prefixes.push_back(lsh::labels_of_prefix(codes, options_.hashes, choice.prefix, rows));
    } else {
      prefixes = lsh::prefix_labels(codes, options_.hashes, rows);
    }
    lsh::ClusterOptions clusters = options_.clusters;
    if (options_.calibrate && is_training && layout.rows() > 0) {
      // Evenly spread, at other rows every step.
      const std::int64_t stride = std::max<std::int64_t>(1, layout.rows() / options_.probes);
      for (std::int64_t r = steps_ % stride; r < layout.rows(); r += stride) {
        probes.push_back(static_cast<std::int32_t>(r));
      }
      clusters.singletons = probes;
    }
    result = host.scalar_type() == at::kDouble
                 ? cluster<double>(host, rows, prefixes, clusters, centroids)
                 : cluster<float>(host.to(at::kFloat), rows, prefixes, clusters, centroids);
    if (fixed) result.prefix = choice.prefix;
  }

  if (layout.rows() > 0 && options_.method == Method::kLsh) {
    const double saved =
        1.0 - static_cast<double>(result.labels.count) / static_cast<double>(layout.rows());
    expected_saving_ = kDecay * std::min(expected_saving_, 1.0) + (1 - kDecay) * saved;
    if (options_.bandwidth > 0 && saved < options_.least_saving) {
      MergedRows merged = unmerged(tokens, layout);
      merged.counters.refused_by_guard = true;
      return merged;
    }
  }

  MergedRows merged;
  merged.cluster = result.labels.of_row;
  merged.size = result.size;
  merged.expert_rows = result.group_clusters;
  merged.keys = keys_of(layout, merged.cluster, merged.size);
  for (std::size_t i = 0; i < result.home.size(); ++i) {
    if (result.home[i] < 0) continue;
    merged.probe.push_back(probes[i]);
    merged.probe_home.push_back(result.home[i]);
  }
  // Every member has a share of 1/n in its centroid.
  at::Tensor share = at::empty({layout.rows()}, at::kDouble);
  for (std::size_t r = 0; r < merged.cluster.size(); ++r) {
    share.data_ptr<double>()[r] = 1.0 / merged.size[static_cast<std::size_t>(merged.cluster[r])];
  }
  const auto mean =
      c10::make_intrusive<RowMap>(layout.token, merged.cluster, layout.tokens, result.labels.count);
  merged.rows = map_rows_to(centroids.to(tokens.device(), tokens.scalar_type()), tokens,
                            share.to(tokens.device()), mean);
  merged.counters = {.merged = true,
                     .rows = layout.rows(),
                     .rows_sent = result.labels.count,
                     .prefix = result.prefix,
                     .worst_radius = result.worst_radius,
                     .mean_radius = result.mean_radius,
                     .relative_error = result.relative_error};
  merged.counters.hash_seconds = seconds_since(start);
  return merged;
}

at::Tensor Dedup::expand(const at::Tensor& tokens, const TokenLayout& layout, MergedRows& merged,
                         const at::Tensor& sent, const at::Tensor& returned,
                         const at::Tensor& weight) {
  const std::int64_t count = layout.tokens;
  at::Tensor output =
      map_rows(returned, weight,
               c10::make_intrusive<RowMap>(merged.cluster, layout.token, returned.size(0), count));
  if (!merged.counters.merged) return output;
  if (!merged.probe.empty()) measure_probes(tokens, layout, merged, sent, returned);
  const double factor = merged.counters.compensation = compensation();
  if (factor == 0) return output;

  // Rows that stand for themselves have no residual, unless they changed on the way.
  const bool lossy = !sent.is_same(merged.rows);
  std::vector<std::int32_t> rows;
  for (std::size_t r = 0; r < merged.cluster.size(); ++r) {
    if (lossy || merged.size[static_cast<std::size_t>(merged.cluster[r])] > 1) {
      rows.push_back(static_cast<std::int32_t>(r));
    }
  }
  if (rows.empty()) return output;
  const auto token = compose(layout.token, rows);
  const at::Tensor residual =
      map_rows(tokens, gather_map(token, count)) -
      map_rows(sent, gather_map(compose(merged.cluster, rows), sent.size(0)));
  std::vector<std::int32_t> all(rows.size());
  std::iota(all.begin(), all.end(), 0);
  const auto sum = c10::make_intrusive<RowMap>(std::move(all), token,
                                               static_cast<std::int64_t>(rows.size()), count);
  return output + map_rows(residual, pick(weight, rows) * factor, sum);
}

void Dedup::measure_probes(const at::Tensor& tokens, const TokenLayout& layout,
                           const MergedRows& merged, const at::Tensor& sent,
                           const at::Tensor& returned) {
  const at::NoGradGuard no_grad;
  const auto own = compose(merged.cluster, merged.probe);
  const at::Tensor residual =
      (pick(tokens, compose(layout.token, merged.probe)) - pick(sent, merged.probe_home))
          .to(at::kDouble);
  const at::Tensor change =
      (pick(returned, own) - pick(returned, merged.probe_home)).to(at::kDouble);
  const double product = (change * residual).sum().item<double>();
  const double square = residual.square().sum().item<double>();
  if (!std::isfinite(product) || !std::isfinite(square)) return;
  local_sums_[0] += product;
  local_sums_[1] += square;
}

void Dedup::add_pending_sums(const std::array<double, 2>& sums) {
  for (std::size_t i = 0; i < sums.size(); ++i) local_sums_[i] += sums[i];
}

std::array<double, 2> Dedup::take_sums() {
  return std::exchange(local_sums_, {});
}

void Dedup::add_global_sums(const std::array<double, 2>& sums) {
  if (sums[1] <= 0) return;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    global_sums_[i] = kDecay * global_sums_[i] + sums[i];
  }
}

double Dedup::compensation() const {
  if (!options_.calibrate) return options_.compensation;
  if (global_sums_[1] <= 0) return 1.0;
  return std::clamp(global_sums_[0] / global_sums_[1], 0.0, 1.0);
}

}  // namespace thinwire::moe
