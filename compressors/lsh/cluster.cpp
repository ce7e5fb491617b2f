#include "thinwire/compressors/lsh/cluster.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "thinwire/common/error.h"
#include "thinwire/compressors/lsh/row_kernels.h"

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
    add_row(rows[r], sum, rows.dim);
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

// The mean of the given rows, rounded once. `sums` is scratch.
template <typename T>
void mean_of(const RowView<T>& rows, std::span<const std::int32_t> members,
             std::vector<double>& sums, T* mean) {
  std::fill(sums.begin(), sums.end(), 0.0);
  for (const std::int32_t r : members) add_row(rows[at(r)], sums.data(), rows.dim);
  const auto count = static_cast<double>(members.size());
  for (std::size_t j = 0; j < rows.dim; ++j) mean[j] = static_cast<T>(sums[j] / count);
}

// What refine() leaves: rows in the final clusters, and of those with several rows the means.
template <typename T>
struct Refined {
  Labels labels;
  std::vector<double> error;       // [rows] |x - mean|², 0 for rows that are alone
  std::vector<std::int32_t> mean;  // [clusters] position in `means`, -1 for one row
  std::vector<T> means;
};

// Splits off rows outside the radius until none is left. A cluster that still has such rows after
// kRounds recentrings is dissolved, which bounds the work and always ends.
template <typename T>
Refined<T> refine(const RowView<T>& rows, std::span<const double> norms, double radius,
                  Labels labels) {
  constexpr int kRounds = 8;
  Refined<T> result;
  result.error.assign(rows.count(), 0.0);
  const std::int32_t clusters = labels.count;
  // Rows of every cluster in ascending order, side by side.
  std::vector<std::size_t> begin(at(clusters) + 1, 0);
  for (const std::int32_t label : labels.of_row) ++begin[at(label) + 1];
  for (std::size_t c = 0; c < at(clusters); ++c) begin[c + 1] += begin[c];
  std::vector<std::int32_t> members(rows.count());
  std::vector<std::size_t> next(begin.begin(), begin.end() - 1);
  for (std::size_t r = 0; r < rows.count(); ++r) {
    members[next[at(labels.of_row[r])]++] = static_cast<std::int32_t>(r);
  }

  result.mean.assign(at(clusters), -1);
  std::vector<double> sums(rows.dim);
  std::vector<T> mean(rows.dim);
  for (std::size_t c = 0; c < at(clusters); ++c) {
    std::span<std::int32_t> left(members.data() + begin[c], begin[c + 1] - begin[c]);
    for (int round = 0; left.size() > 1; ++round) {
      if (round == kRounds) {  // dissolve: the first row keeps the number
        for (const std::int32_t r : left.subspan(1)) {
          labels.of_row[at(r)] = labels.count++;
          result.error[at(r)] = 0;
        }
        left = left.first(1);
        break;
      }
      mean_of(rows, left, sums, mean.data());
      std::size_t inside = 0;
      for (const std::int32_t r : left) {
        const double error = squared_distance(rows[at(r)], mean.data(), rows.dim);
        if (std::isinf(radius) || relative(error, norms[at(r)]) <= radius) {
          left[inside++] = r;
          result.error[at(r)] = error;
        } else {
          labels.of_row[at(r)] = labels.count++;
          result.error[at(r)] = 0;
        }
      }
      if (inside == left.size()) {
        result.mean[c] = static_cast<std::int32_t>(result.means.size() / rows.dim);
        result.means.insert(result.means.end(), mean.begin(), mean.end());
        break;
      }
      left = left.first(inside);
    }
    if (left.size() == 1) result.error[at(left[0])] = 0;
  }
  result.mean.resize(at(labels.count), -1);
  result.labels = std::move(labels);
  return result;
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
  std::vector<double> norms(view.count());
  for (std::size_t r = 0; r < view.count(); ++r) norms[r] = squared_norm(view[r], view.dim);
  Clustering result;
  Refined<T> refined;
  if (options.choice.rule == PrefixChoice::Rule::kFewestRows) {
    for (std::size_t p = 0; p < prefixes.size(); ++p) {
      Labels labels = prefixes[p];
      auto home = split_off(options.singletons, labels);
      auto candidate = refine(view, norms, options.radius, std::move(labels));
      if (p == 0 || candidate.labels.count < refined.labels.count) {
        result.home = std::move(home);
        refined = std::move(candidate);
        result.prefix = static_cast<int>(p);
      }
    }
  } else {
    result.prefix = chosen_prefix<T>(tokens, dim, rows, prefixes, options.choice);
    Labels labels = prefixes[at(result.prefix)];
    result.home = split_off(options.singletons, labels);
    refined = refine(view, norms, options.radius, std::move(labels));
  }
  const std::vector<std::int32_t> refined_label = refined.labels.of_row;
  result.labels = std::move(refined.labels);
  finish_labels(result, rows);

  centroids.resize(at(result.labels.count) * view.dim);
  std::int32_t written = 0;  // clusters are numbered by their first row
  double error_sum = 0;
  double norm_sum = 0;
  double radius_sum = 0;
  std::int64_t finite_rows = 0;
  for (std::size_t r = 0; r < view.count(); ++r) {
    if (result.labels.of_row[r] == written) {
      const std::int32_t mean = refined.mean[at(refined_label[r])];
      const T* source = mean < 0 ? view[r] : refined.means.data() + at(mean) * view.dim;
      std::copy_n(source, view.dim, centroids.data() + at(written++) * view.dim);
    }
    if (!std::isfinite(norms[r])) continue;
    const double radius = relative(refined.error[r], norms[r]);
    error_sum += refined.error[r];
    norm_sum += norms[r];
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
