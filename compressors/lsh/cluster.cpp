#include "thinwire/compressors/lsh/cluster.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "thinwire/common/error.h"

namespace thinwire::lsh {
namespace {

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

// Read access to the rows of a token matrix.
template <typename T>
struct RowView {
  std::span<const T> tokens;
  std::size_t dim;
  std::span<const std::int32_t> token_of_row;

  const T* operator[](std::size_t row) const { return tokens.data() + at(token_of_row[row]) * dim; }
  std::size_t count() const { return token_of_row.size(); }
};

// Sum of term(i)² over i < n in eight interleaved sums, which the compiler can keep in vector
// registers.
template <typename Term>
double sum_of_squares(std::size_t n, const Term& term) {
  double sums[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (std::size_t j = 0; j < 8; ++j) sums[j] += term(i + j) * term(i + j);
  }
  for (std::size_t j = 0; i < n; ++i, ++j) sums[j] += term(i) * term(i);
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

template <typename A, typename B>
double squared_distance(const A* a, const B* b, std::size_t n) {
  return sum_of_squares(
      n, [&](std::size_t i) { return static_cast<double>(a[i]) - static_cast<double>(b[i]); });
}

template <typename A>
double squared_norm(const A* a, std::size_t n) {
  return sum_of_squares(n, [&](std::size_t i) { return static_cast<double>(a[i]); });
}

// Means of the rows of every cluster in double, and the number of rows.
struct Means {
  std::vector<double> values;  // [clusters, dim]
  std::vector<std::int32_t> size;
};

template <typename T>
Means means_of(const RowView<T>& rows, const Labels& labels) {
  Means means;
  means.values.assign(at(labels.count) * rows.dim, 0.0);
  means.size.assign(at(labels.count), 0);
  for (std::size_t r = 0; r < rows.count(); ++r) {
    const std::size_t c = at(labels.of_row[r]);
    double* sum = means.values.data() + c * rows.dim;
    const T* x = rows[r];
    for (std::size_t j = 0; j < rows.dim; ++j) sum[j] += static_cast<double>(x[j]);
    ++means.size[c];
  }
  for (std::size_t c = 0; c < means.size.size(); ++c) {
    if (means.size[c] == 1) continue;  // x / 1, and leaves the payload of a NaN alone
    double* mean = means.values.data() + c * rows.dim;
    for (std::size_t j = 0; j < rows.dim; ++j) mean[j] /= means.size[c];
  }
  return means;
}

double relative(double error, double norm) {
  if (error == 0) return 0;
  return norm > 0 ? std::sqrt(error / norm) : std::numeric_limits<double>::infinity();
}

// Renumbers by first row and fills in the counts per group.
// `home` holds old numbers of clusters on entry.
void finish_labels(Clustering& result, const GroupedRows& rows) {
  std::vector<std::int32_t> number(at(result.labels.count), -1);
  result.group_clusters.assign(at(rows.groups()), 0);
  std::int32_t next = 0;
  for (std::int64_t g = 0; g < rows.groups(); ++g) {
    const std::int32_t first = next;
    for (std::size_t r = at(rows.group_begin[at(g)]); r < at(rows.group_begin[at(g) + 1]); ++r) {
      std::int32_t& label = result.labels.of_row[r];
      std::int32_t& renumbered = number[at(label)];
      if (renumbered < 0) renumbered = next++;
      label = renumbered;
    }
    result.group_clusters[at(g)] = next - first;
  }
  for (std::int32_t& cluster : result.home) cluster = number[at(cluster)];
  result.labels.count = next;
  result.size.assign(at(next), 0);
  for (const std::int32_t label : result.labels.of_row) ++result.size[at(label)];
}

// Takes the forced singletons out of their clusters; returns the clusters that they were in.
std::vector<std::int32_t> split_off(std::span<const std::int32_t> rows, Labels& labels) {
  std::vector<std::int32_t> home;
  for (const std::int32_t r : rows) {
    home.push_back(labels.of_row[at(r)]);
    labels.of_row[at(r)] = labels.count++;
  }
  return home;
}

// Splits off rows outside the radius until none is left. A cluster that still has such rows after
// kRounds recentrings is dissolved, which bounds the work and always ends.
template <typename T>
void enforce_radius(const RowView<T>& rows, double radius, Labels& labels) {
  constexpr int kRounds = 8;
  if (std::isinf(radius)) return;
  std::vector<double> norms(rows.count());
  for (std::size_t r = 0; r < rows.count(); ++r) norms[r] = squared_norm(rows[r], rows.dim);

  // Rows of every cluster in ascending order: only clusters that lost rows are looked at again.
  std::vector<std::vector<std::int32_t>> members(at(labels.count));
  for (std::size_t r = 0; r < rows.count(); ++r) {
    members[at(labels.of_row[r])].push_back(static_cast<std::int32_t>(r));
  }
  std::vector<double> mean(rows.dim);
  std::vector<T> centroid(rows.dim);
  const std::int32_t clusters = labels.count;
  for (std::int32_t c = 0; c < clusters; ++c) {
    auto& rows_of_c = members[at(c)];
    for (int round = 0; rows_of_c.size() > 1; ++round) {
      std::fill(mean.begin(), mean.end(), 0.0);
      for (const std::int32_t r : rows_of_c) {
        const T* x = rows[at(r)];
        for (std::size_t j = 0; j < rows.dim; ++j) mean[j] += static_cast<double>(x[j]);
      }
      for (std::size_t j = 0; j < rows.dim; ++j) {
        centroid[j] = static_cast<T>(mean[j] / static_cast<double>(rows_of_c.size()));
      }
      std::vector<std::int32_t> inside;
      for (const std::int32_t r : rows_of_c) {
        const double error = squared_distance(rows[at(r)], centroid.data(), rows.dim);
        if (round < kRounds && relative(error, norms[at(r)]) <= radius) {
          inside.push_back(r);
        } else if (round < kRounds) {
          labels.of_row[at(r)] = labels.count++;
        }
      }
      if (round == kRounds) {  // dissolve: the first row keeps the number
        for (std::size_t i = 1; i < rows_of_c.size(); ++i) {
          labels.of_row[at(rows_of_c[i])] = labels.count++;
        }
        break;
      }
      if (inside.size() == rows_of_c.size()) break;
      rows_of_c = std::move(inside);
    }
  }
}

template <typename T>
int chosen_prefix(std::span<const T> tokens, std::int64_t dim, const GroupedRows& rows,
                  std::span<const Labels> prefixes, const PrefixChoice& choice) {
  const int longest = static_cast<int>(prefixes.size()) - 1;
  switch (choice.rule) {
    case PrefixChoice::Rule::kFixed:
    case PrefixChoice::Rule::kFewestRows:
      break;
    case PrefixChoice::Rule::kError: {
      const auto errors = prefix_errors<T>(tokens, dim, rows, prefixes);
      for (int p = 0; p < longest; ++p) {
        if (errors[at(p)] <= choice.target) return p;
      }
      return longest;
    }
    case PrefixChoice::Rule::kRows:
      for (int p = longest; p > 0; --p) {
        if (prefixes[at(p)].count <= choice.target * static_cast<double>(rows.rows())) return p;
      }
      return 0;
  }
  return std::min(choice.prefix, longest);
}

}  // namespace

template <typename T>
std::vector<double> prefix_errors(std::span<const T> tokens, std::int64_t dim,
                                  const GroupedRows& rows, std::span<const Labels> prefixes) {
  const RowView<T> view{tokens, at(dim), rows.token};
  double total = 0;
  std::vector<bool> counts(view.count());
  for (std::size_t r = 0; r < view.count(); ++r) {
    const double norm = squared_norm(view[r], view.dim);
    counts[r] = std::isfinite(norm);
    if (counts[r]) total += norm;
  }

  std::vector<double> errors(prefixes.size());
  // Finest prefix directly: error of every cluster about its mean.
  const Labels* fine = &prefixes.back();
  Means means = means_of(view, *fine);
  double error = 0;
  for (std::size_t r = 0; r < view.count(); ++r) {
    if (!counts[r] || means.size[at(fine->of_row[r])] == 1) continue;
    error +=
        squared_distance(view[r], means.values.data() + at(fine->of_row[r]) * view.dim, view.dim);
  }
  errors.back() = relative(error, total);

  for (std::size_t p = prefixes.size() - 1; p-- > 0;) {
    const Labels& coarse = prefixes[p];
    // The mean of a coarse cluster is the weighted mean of its parts' means, and
    //   sum |x - mean|² = sum over parts of (their own error + size · |part mean - mean|²).
    std::vector<std::int32_t> parent(at(fine->count));
    for (std::size_t r = 0; r < view.count(); ++r) {
      parent[at(fine->of_row[r])] = coarse.of_row[r];
    }
    Means merged;
    merged.values.assign(at(coarse.count) * view.dim, 0.0);
    merged.size.assign(at(coarse.count), 0);
    std::vector<std::int32_t> parts(at(coarse.count), 0);
    for (std::size_t c = 0; c < parent.size(); ++c) {
      double* sum = merged.values.data() + at(parent[c]) * view.dim;
      const double* part = means.values.data() + c * view.dim;
      for (std::size_t j = 0; j < view.dim; ++j) sum[j] += means.size[c] * part[j];
      merged.size[at(parent[c])] += means.size[c];
      ++parts[at(parent[c])];
    }
    for (std::size_t c = 0; c < merged.size.size(); ++c) {
      double* mean = merged.values.data() + c * view.dim;
      for (std::size_t j = 0; j < view.dim; ++j) mean[j] /= merged.size[c];
    }
    for (std::size_t c = 0; c < parent.size(); ++c) {
      if (parts[at(parent[c])] == 1) continue;
      error += means.size[c] * squared_distance(means.values.data() + c * view.dim,
                                                merged.values.data() + at(parent[c]) * view.dim,
                                                view.dim);
    }
    errors[p] = relative(error, total);
    means = std::move(merged);
    fine = &coarse;
  }
  return errors;
}

template <typename T>
Clustering cluster_rows(std::span<const T> tokens, std::int64_t dim, const GroupedRows& rows,
                        std::span<const Labels> prefixes, const ClusterOptions& options,
                        std::vector<T>& centroids) {
  check(dim >= 1 && tokens.size() % at(dim) == 0, "tokens of dimension ", dim, " expected, got ",
        tokens.size(), " elements");
  check(!prefixes.empty(), "labels of at least one prefix are needed");
  for (const Labels& labels : prefixes) {
    check(labels.of_row.size() == rows.token.size(), "labels of ", rows.token.size(),
          " rows expected, got ", labels.of_row.size());
  }
  check(options.radius >= 0, "the radius bound must not be negative, got ", options.radius);
  check(options.choice.prefix >= 0, "a prefix must not be negative, got ", options.choice.prefix);
  for (std::size_t i = 0; i < options.singletons.size(); ++i) {
    check(options.singletons[i] >= (i == 0 ? 0 : options.singletons[i - 1] + 1) &&
              options.singletons[i] < rows.rows(),
          "forced singletons must be rows in ascending order, got ", options.singletons[i]);
  }
  check(options.choice.target >= 0, "the target must not be negative, got ", options.choice.target);

  const RowView<T> view{tokens, at(dim), rows.token};
  Clustering result;
  if (options.choice.rule == PrefixChoice::Rule::kFewestRows) {
    for (std::size_t p = 0; p < prefixes.size(); ++p) {
      Labels labels = prefixes[p];
      auto home = split_off(options.singletons, labels);
      enforce_radius(view, options.radius, labels);
      if (p == 0 || labels.count < result.labels.count) {
        result.home = std::move(home);
        result.labels = std::move(labels);
        result.prefix = static_cast<int>(p);
      }
    }
  } else {
    result.prefix = chosen_prefix<T>(tokens, dim, rows, prefixes, options.choice);
    result.labels = prefixes[at(result.prefix)];
    result.home = split_off(options.singletons, result.labels);
    enforce_radius(view, options.radius, result.labels);
  }
  finish_labels(result, rows);

  const Means means = means_of(view, result.labels);
  centroids.resize(means.values.size());
  for (std::size_t i = 0; i < centroids.size(); ++i) centroids[i] = static_cast<T>(means.values[i]);

  double error_sum = 0;
  double norm_sum = 0;
  double radius_sum = 0;
  std::int64_t finite_rows = 0;
  for (std::size_t r = 0; r < view.count(); ++r) {
    const double norm = squared_norm(view[r], view.dim);
    if (!std::isfinite(norm)) continue;
    const std::size_t c = at(result.labels.of_row[r]);
    const double error = result.size[c] == 1
                             ? 0
                             : squared_distance(view[r], centroids.data() + c * view.dim, view.dim);
    const double radius = relative(error, norm);
    error_sum += error;
    norm_sum += norm;
    radius_sum += radius;
    result.worst_radius = std::max(result.worst_radius, radius);
    ++finite_rows;
  }
  result.mean_radius = finite_rows > 0 ? radius_sum / static_cast<double>(finite_rows) : 0;
  result.relative_error = relative(error_sum, norm_sum);
  return result;
}

template std::vector<double> prefix_errors<float>(std::span<const float>, std::int64_t,
                                                  const GroupedRows&, std::span<const Labels>);
template std::vector<double> prefix_errors<double>(std::span<const double>, std::int64_t,
                                                   const GroupedRows&, std::span<const Labels>);
template Clustering cluster_rows<float>(std::span<const float>, std::int64_t, const GroupedRows&,
                                        std::span<const Labels>, const ClusterOptions&,
                                        std::vector<float>&);
template Clustering cluster_rows<double>(std::span<const double>, std::int64_t, const GroupedRows&,
                                         std::span<const Labels>, const ClusterOptions&,
                                         std::vector<double>&);

}  // namespace thinwire::lsh
