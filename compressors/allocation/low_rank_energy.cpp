#include "thinwire/compressors/allocation/low_rank_energy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "thinwire/common/error.h"
#include "thinwire/common/philox.h"

namespace thinwire::lgreco {
namespace {

constexpr std::size_t kExtraColumns = 8;
constexpr int kRounds = 2;

// Multiplications of both ways: the Gram matrix and its tridiagonal form, or the products with the
// subspace and its orthogonalisation.
double exact_work(double size, double numel) {
  return size * numel / 2 + 4 * size * size * size / 3;
}
double subspace_work(double vectors, double rows, double cols) {
  const double products = (2 * kRounds + 1) * vectors * rows * cols;
  return products + 2 * vectors * vectors * ((kRounds + 1) * rows + kRounds * cols);
}

// Reduces to the diagonal d and the subdiagonal e with e[k] beside d[k] and d[k + 1].
void tridiagonalise(std::span<double> a, std::size_t n, std::vector<double>& d,
                    std::vector<double>& e) {
  std::vector<double> v(n), w(n);
  for (std::size_t k = 0; k + 1 < n; ++k) {
    // Reflect column k below the diagonal onto its first entry.
    double norm = 0;
    for (std::size_t i = k + 1; i < n; ++i) norm = std::hypot(norm, a[i * n + k]);
    d[k] = a[k * n + k];
    const double first = a[(k + 1) * n + k];
    e[k] = first > 0 ? -norm : norm;
    if (norm == 0) continue;
    double square = 0;
    for (std::size_t i = k + 1; i < n; ++i) {
      v[i] = (a[i * n + k] - (i == k + 1 ? e[k] : 0)) / norm;
      square += v[i] * v[i];
    }
    // With H = I − 2vvᵀ/vᵀv the trailing block becomes A − vwᵀ − wvᵀ.
    std::fill(w.begin(), w.end(), 0.0);
    for (std::size_t i = k + 1; i < n; ++i) {
      const double* row = &a[i * n];
      double dot = row[i] * v[i];
      for (std::size_t j = k + 1; j < i; ++j) {
        dot += row[j] * v[j];
        w[j] += row[j] * v[i];
      }
      w[i] += dot;
    }
    double both = 0;
    for (std::size_t i = k + 1; i < n; ++i) both += v[i] * w[i];
    for (std::size_t i = k + 1; i < n; ++i) w[i] = 2 * (w[i] - v[i] * both / square) / square;
    for (std::size_t i = k + 1; i < n; ++i) {
      double* row = &a[i * n];
      for (std::size_t j = k + 1; j <= i; ++j) row[j] -= v[i] * w[j] + w[i] * v[j];
    }
  }
  d[n - 1] = a[n * n - 1];
}

// One implicit QR step on the unreduced block first..last: a bulge is chased down the band.
void qr_step(std::vector<double>& d, std::vector<double>& e, std::size_t first, std::size_t last) {
  const double half = (d[last - 1] - d[last]) / 2;
  const double off = e[last - 1];
  const double shift = d[last] - off * off / (half + std::copysign(std::hypot(half, off), half));
  double x = d[first] - shift, z = e[first];
  for (std::size_t k = first; k < last; ++k) {
    const double r = std::hypot(x, z);
    const double c = r > 0 ? x / r : 1, s = r > 0 ? z / r : 0;
    if (k > first) e[k - 1] = r;
    const double a = d[k], b = e[k], g = d[k + 1];
    d[k] = c * c * a + 2 * c * s * b + s * s * g;
    d[k + 1] = s * s * a - 2 * c * s * b + c * c * g;
    e[k] = c * s * (g - a) + (c * c - s * s) * b;
    if (k + 1 < last) {
      x = e[k];
      z = s * e[k + 1];
      e[k + 1] *= c;
    }
  }
}

// Sum over the longer side of the outer products of the vectors along the shorter one.
template <typename Real>
std::vector<double> gram_of_shorter_side(const Real* matrix, std::size_t rows, std::size_t cols) {
  const std::size_t size = std::min(rows, cols), count = std::max(rows, cols);
  const std::size_t along = rows <= cols ? cols : 1, across = rows <= cols ? 1 : cols;
  std::vector<double> gram(size * size), vector(size);
  for (std::size_t k = 0; k < count; ++k) {
    for (std::size_t i = 0; i < size; ++i) vector[i] = matrix[k * across + i * along];
    for (std::size_t i = 0; i < size; ++i) {
      const double factor = vector[i];
      double* row = &gram[i * size];
      for (std::size_t j = 0; j <= i; ++j) row[j] += factor * vector[j];
    }
  }
  return gram;
}

// Gram-Schmidt, twice for orthogonality to rounding; vectors are rows of `basis`. A vector that
// depends on the others becomes zero.
void orthonormalise(std::vector<double>& basis, std::size_t vectors, std::size_t length) {
  for (std::size_t v = 0; v < vectors; ++v) {
    double* x = &basis[v * length];
    double before = 0;
    for (std::size_t i = 0; i < length; ++i) before += x[i] * x[i];
    double norm = before;
    for (int pass = 0; pass < 2; ++pass) {
      for (std::size_t u = 0; u < v; ++u) {
        const double* y = &basis[u * length];
        double dot = 0;
        for (std::size_t i = 0; i < length; ++i) dot += x[i] * y[i];
        for (std::size_t i = 0; i < length; ++i) x[i] -= dot * y[i];
      }
      norm = 0;
      for (std::size_t i = 0; i < length; ++i) norm += x[i] * x[i];
    }
    const double scale = norm > 1e-28 * before ? 1 / std::sqrt(norm) : 0;
    for (std::size_t i = 0; i < length; ++i) x[i] *= scale;
  }
}

// out[v] = matrix · in[v], or its transpose; vectors are rows.
std::vector<double> multiply(std::span<const float> matrix, std::size_t rows, std::size_t cols,
                             const std::vector<double>& in, std::size_t vectors, bool transposed) {
  const std::size_t from = transposed ? rows : cols, to = transposed ? cols : rows;
  std::vector<double> out(vectors * to);
  for (std::size_t i = 0; i < rows; ++i) {
    const float* row = &matrix[i * cols];
    for (std::size_t v = 0; v < vectors; ++v) {
      if (transposed) {
        const double factor = in[v * from + i];
        double* target = &out[v * to];
        for (std::size_t j = 0; j < cols; ++j) target[j] += factor * row[j];
      } else {
        const double* source = &in[v * from];
        // Four sums, since one would wait for every addition.
        double sum[4] = {0, 0, 0, 0};
        std::size_t j = 0;
        for (; j + 4 <= cols; j += 4) {
          for (std::size_t q = 0; q < 4; ++q) sum[q] += source[j + q] * row[j + q];
        }
        for (; j < cols; ++j) sum[0] += source[j] * row[j];
        out[v * to + i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      }
    }
  }
  return out;
}

// Squares of the largest singular values of the matrix within a random subspace, ascending.
std::vector<double> leading_energies(std::span<const float> matrix, std::size_t rows,
                                     std::size_t cols, std::size_t vectors) {
  const PhiloxStream random = PhiloxStream::of({.seed = 0x6c677265636f, .step = 0});
  std::vector<double> right(vectors * cols);
  for (std::size_t i = 0; i < right.size(); ++i) right[i] = random.uniform(i) - 0.5;
  std::vector<double> left;
  for (int round = 0; round <= kRounds; ++round) {
    left = multiply(matrix, rows, cols, right, vectors, false);
    orthonormalise(left, vectors, rows);
    right = multiply(matrix, rows, cols, left, vectors, true);
    if (round < kRounds) orthonormalise(right, vectors, cols);
  }
  std::vector<double> gram = gram_of_shorter_side(right.data(), vectors, cols);
  return symmetric_eigenvalues(gram, vectors);
}

}  // namespace

std::vector<double> symmetric_eigenvalues(std::span<double> matrix, std::size_t size) {
  check(matrix.size() == size * size, "a matrix of size ", size, " has ", size * size,
        " elements, got ", matrix.size());
  if (size == 0) return {};
  std::vector<double> d(size), e(size);
  tridiagonalise(matrix, size, d, e);
  double scale = 0;
  for (std::size_t i = 0; i < size; ++i) scale = std::max({scale, std::abs(d[i]), std::abs(e[i])});
  const double negligible = std::numeric_limits<double>::epsilon() * scale;
  std::size_t last = size - 1;
  // Two to three steps an eigenvalue are usual.
  for (std::size_t steps = 0; last > 0;) {
    if (std::abs(e[last - 1]) <= negligible) {
      --last;
      continue;
    }
    std::size_t first = last - 1;
    while (first > 0 && std::abs(e[first - 1]) > negligible) --first;
    qr_step(d, e, first, last);
    check(++steps < 60 * size, "the eigenvalues of a matrix of size ", size,
          " did not converge; are all its elements finite?");
  }
  std::sort(d.begin(), d.end());
  return d;
}

std::vector<double> low_rank_squared_errors(std::span<const float> matrix, std::int64_t rows,
                                            std::int64_t cols,
                                            std::span<const std::int64_t> ranks) {
  check(rows >= 0 && cols >= 0 && static_cast<std::int64_t>(matrix.size()) == rows * cols,
        "a matrix of ", rows, " x ", cols, " does not have ", matrix.size(), " elements");
  std::int64_t most = 0;
  for (std::int64_t rank : ranks) {
    check(rank >= 0, "a rank must not be negative, got ", rank);
    most = std::max(most, rank);
  }
  const auto m = static_cast<std::size_t>(rows), n = static_cast<std::size_t>(cols);
  const std::size_t size = std::min(m, n);
  const std::size_t vectors = std::min(size, static_cast<std::size_t>(most) + kExtraColumns);
  if (size == 0) return std::vector<double>(ranks.size(), 0);
  double total = 0;
  for (float x : matrix) total += static_cast<double>(x) * x;
  check(std::isfinite(total), "the matrix holds NaN or infinity");

  const bool exact = exact_work(static_cast<double>(size), static_cast<double>(matrix.size())) <=
                         subspace_work(static_cast<double>(vectors), static_cast<double>(m),
                                       static_cast<double>(n)) ||
                     vectors == size;
  std::vector<double> energies;
  if (exact) {
    auto gram = gram_of_shorter_side(matrix.data(), m, n);
    energies = symmetric_eigenvalues(gram, size);
  } else {
    energies = leading_energies(matrix, m, n, vectors);
  }
  std::vector<double> errors;
  for (std::int64_t rank : ranks) {
    const std::size_t kept = std::min(static_cast<std::size_t>(rank), energies.size());
    double sum = 0;
    if (exact) {
      // The small ones first, since the difference to the total would cancel.
      for (std::size_t i = 0; i + kept < energies.size(); ++i) sum += std::max(energies[i], 0.0);
    } else {
      sum = total;
      for (std::size_t i = energies.size() - kept; i < energies.size(); ++i) sum -= energies[i];
    }
    errors.push_back(std::max(sum, 0.0));
  }
  return errors;
}

}  // namespace thinwire::lgreco
