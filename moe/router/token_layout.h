// From the router's decisions to the order in which tokens are sent: rows sorted by expert, with
// tokens over an expert's capacity dropped.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/moe/rows/row_ops.h"

namespace thinwire::moe {

// Which tokens lose when an expert is over its capacity.
enum class DropPolicy {
  kPosition,    // later choices first, then higher token numbers (GShard, Switch)
  kProbability  // smaller gate weights first, then as kPosition
};

// The decisions of a router for T tokens: pair i sends token[i] to expert[i].
struct Pairs {
  std::vector<std::int32_t> token;
  std::vector<std::int32_t> expert;
  std::vector<std::int32_t> choice;  // 0 for a token's first choice, 1 for its second, ...

  std::size_t size() const { return token.size(); }
};

struct TokenLayout {
  std::int64_t tokens = 0;
  // Rows are sorted by expert, then by token, then by pair.
  std::vector<std::int32_t> token;         // [rows] token of every row
  std::vector<std::int32_t> pair;          // [rows] pair that every row came from
  std::vector<std::int64_t> expert_begin;  // [experts + 1] first row of every expert
  std::int64_t dropped = 0;                // pairs over capacity

  std::int64_t rows() const { return static_cast<std::int64_t>(token.size()); }
  std::int64_t experts() const { return static_cast<std::int64_t>(expert_begin.size()) - 1; }
  // [T, d] tokens -> [rows, d].
  RowMapPtr gather() const { return gather_map(token, tokens); }
};

// Most rows that one rank may send to one expert: ceil(tokens · top_k / experts · factor), as in
// DeepSpeed and Megatron. A factor of 0 means no limit and gives `tokens`.
std::int64_t expert_capacity(std::int64_t tokens, std::int64_t top_k, std::int64_t experts,
                             double factor);

// weight: [pairs], only read for kProbability. Throws InvalidArgument for tokens or experts out of
// range.
TokenLayout make_token_layout(const Pairs& pairs, const at::Tensor& weight, std::int64_t tokens,
                              std::int64_t experts, std::int64_t capacity, DropPolicy policy);

}  // namespace thinwire::moe
