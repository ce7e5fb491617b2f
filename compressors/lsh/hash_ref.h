// The scalar definition of the cross-polytope hash. Order of the additions is part of it: the SIMD
// code must give the same bits.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "thinwire/compressors/lsh/cross_polytope.h"
#include "thinwire/compressors/lsh/rotation.h"

namespace thinwire::lsh {

// In-place Walsh-Hadamard transform in natural order, unnormalised: butterflies of distance 1, 2,
// 4, ... The size is a power of two.
inline void walsh_hadamard_ref(std::span<float> values) {
  for (std::size_t h = 1; h < values.size(); h *= 2) {
    for (std::size_t i = 0; i < values.size(); i += 2 * h) {
      for (std::size_t j = i; j < i + h; ++j) {
        const float a = values[j];
        const float b = values[j + h];
        values[j] = a + b;
        values[j + h] = a - b;
      }
    }
  }
}

// The first rotation.outputs() coordinates of the rotated token.
inline std::vector<float> rotate_ref(const Rotation& rotation, std::span<const float> token) {
  const auto outputs = static_cast<std::size_t>(rotation.outputs());
  std::vector<float> result(outputs);
  if (rotation.kind() == RotationKind::kGaussian) {
    for (std::size_t i = 0; i < outputs; ++i) {
      float sum = 0;
      for (std::size_t j = 0; j < token.size(); ++j) {
        sum += rotation.matrix()[i * token.size() + j] * token[j];
      }
      result[i] = sum;
    }
    return result;
  }

  std::vector<float> values(token.begin(), token.end());
  values.resize(static_cast<std::size_t>(rotation.padded_dim()));
  for (int round = 0; round < rotation.rounds(); ++round) {
    const auto signs = rotation.signs(round);
    for (std::size_t j = 0; j < values.size(); ++j) {
      values[j] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(values[j]) ^ signs[j]);
    }
    if (round + 1 < rotation.rounds()) walsh_hadamard_ref(values);
  }
  // Row i < m of H only sees index j through j mod m: the last transform is one of size m over the
  // sums of the elements with equal j mod m.
  const auto m = static_cast<std::size_t>(rotation.padded_outputs());
  std::vector<float> folded(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(m));
  for (std::size_t j = m; j < values.size(); ++j) folded[j % m] += values[j];
  walsh_hadamard_ref(folded);
  folded.resize(outputs);
  return folded;
}

inline HashCode nearest_vertex_ref(std::span<const float> rotated) {
  float best = -1;
  std::uint32_t code = 0;
  bool finite = true;
  for (std::size_t i = 0; i < rotated.size(); ++i) {
    const float magnitude = std::fabs(rotated[i]);
    finite = finite && magnitude <= std::numeric_limits<float>::max();
    if (magnitude > best) {
      best = magnitude;
      code = static_cast<std::uint32_t>(2 * i) + (rotated[i] < 0 ? 1 : 0);
    }
  }
  return finite ? static_cast<HashCode>(code) : kUnhashable;
}

}  // namespace thinwire::lsh
