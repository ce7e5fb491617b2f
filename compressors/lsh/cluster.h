// Clustering of tokens by equal hashes, for LSH-MoE (arXiv 2411.08446): rows that go to one expert
// and have equal hash codes are replaced by their mean.
//
// A row is one (token, expert) pair; rows come grouped by expert, and rows of different groups
// never share a cluster. Three departures from the paper:
// - nested prefixes: the clusters of all prefixes p = 0..K of the K hashes come from one pass, and
//   the prefix is chosen by an error or a row target; a longer prefix only splits clusters;
// - a radius bound: rows further than `radius` (relative to their own length) from the mean become
//   clusters of their own, until the bound holds for the final means;
// - unhashable tokens (NaN, infinities) are clusters of their own, so they cannot spoil others.
//
// All functions are deterministic (sums in the order of the rows) and thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/compressors/lsh/cross_polytope.h"

namespace thinwire::lsh {

// Rows of a matrix of tokens: row r is token token[r]. Row numbers of group g are
// [group_begin[g], group_begin[g + 1]).
struct GroupedRows {
  std::span<const std::int32_t> token;
  std::span<const std::int64_t> group_begin;

  std::int64_t rows() const { return static_cast<std::int64_t>(token.size()); }
  std::int64_t groups() const { return static_cast<std::int64_t>(group_begin.size()) - 1; }
};

// Cluster of every row. Clusters are numbered by their first row, so those of one group are
// consecutive.
struct Labels {
  std::vector<std::int32_t> of_row;
  std::int32_t count = 0;
};

// The labels of all prefixes, result[p] for p = 0..hashes: rows share a cluster if they have the
// same group and the same first p codes. codes: [tokens, hashes] of CrossPolytopeHash::hash().
// An unhashable token shares a cluster with no row, not even at p = 0.
std::vector<Labels> prefix_labels(std::span<const HashCode> codes, int hashes,
                                  const GroupedRows& rows);

// The same for one prefix alone, in one pass over the rows.
Labels labels_of_prefix(std::span<const HashCode> codes, int hashes, int prefix,
                        const GroupedRows& rows);

// Which prefix cluster_rows() takes.
struct PrefixChoice {
  enum class Rule {
    kFixed,      // `prefix` hashes (at most as many as were computed)
    kError,      // the shortest whose relative error is at most `target`, else the longest
    kRows,       // the longest with at most `target` · rows clusters, else the shortest
    kFewestRows  // the one with the fewest clusters after the radius bound, the shortest on ties
  };
  Rule rule = Rule::kFixed;
  int prefix = 6;
  double target = 0;
};

struct ClusterOptions {
  PrefixChoice choice;
  // Largest allowed |x - centroid| / |x|; infinity: no bound.
  double radius = 0.4;
  // Rows that become clusters of their own whatever their hashes, in ascending order.
  std::span<const std::int32_t> singletons = {};
};

struct Clustering {
  Labels labels;
  std::vector<std::int32_t> size;            // rows of every cluster
  std::vector<std::int64_t> group_clusters;  // clusters of every group
  // For every forced singleton the cluster in which the rest of its hash cluster ended up, or -1
  // where nothing is left of it.
  std::vector<std::int32_t> home;
  int prefix = 0;  // the chosen one
  // Of |x - centroid| / |x| over all rows with finite tokens, after rounding the centroids. A row
  // at distance 0 has radius 0; a zero token that is not its own centroid has radius infinity.
  double worst_radius = 0;
  double mean_radius = 0;
  // sqrt(sum |x - centroid|² / sum |x|²) over the same rows.
  double relative_error = 0;
};

// sqrt(sum |x - mean|² / sum |x|²) of every prefix, over rows with hashable tokens. It never
// increases with the prefix, in floating point too: the error of a coarse cluster is computed as
// that of its parts plus what merging them adds. tokens: [n, dim].
template <typename T>
std::vector<double> prefix_errors(std::span<const T> tokens, std::int64_t dim,
                                  const GroupedRows& rows, std::span<const Labels> prefixes);

// Chooses a prefix, applies the radius bound and writes the centroids: [clusters, dim], plain means
// of the rows, summed in double in the order of the rows and rounded once. The centroid of a
// single row is the row itself, bit for bit. Throws InvalidArgument when sizes do not fit or an
// option is out of range. T is float or double.
template <typename T>
Clustering cluster_rows(std::span<const T> tokens, std::int64_t dim, const GroupedRows& rows,
                        std::span<const Labels> prefixes, const ClusterOptions& options,
                        std::vector<T>& centroids);

// Labels in which rows share a cluster only if they have the same group and their tokens the same
// bytes (`token_bytes` each): merging them loses nothing.
Labels duplicate_labels(std::span<const std::byte> tokens, std::int64_t token_bytes,
                        const GroupedRows& rows);

}  // namespace thinwire::lsh
