#include "thinwire/moe/layer/experts.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "thinwire/common/error.h"
#include "thinwire/moe/router/initialize.h"

namespace thinwire::moe {
namespace {

// One product for all experts computes max · count rows; beyond this factor over the real rows,
// one product per expert is cheaper.
constexpr double kMostPadding = 1.25;

void check_expert_rows(const at::Tensor& rows, const std::vector<std::int64_t>& expert_rows,
                       std::int64_t count) {
  check(static_cast<std::int64_t>(expert_rows.size()) == count, "row counts of ", count,
        " experts expected, got ", expert_rows.size());
  const auto total = std::accumulate(expert_rows.begin(), expert_rows.end(), std::int64_t{0});
  check(rows.dim() == 2 && rows.size(0) == total, "a matrix of ", total,
        " rows expected, got shape ", rows.sizes());
}

}  // namespace

GroupedFfn::GroupedFfn(std::int64_t first_expert, std::int64_t count, const FfnOptions& options)
    : ExpertGroup("GroupedFfn", first_expert, count), options_(options) {
  check(options.dim >= 1 && options.hidden >= 1, "an expert needs dim and hidden above 0, got ",
        options.dim, " and ", options.hidden);
  const std::int64_t d = options.dim;
  const std::int64_t h = options.hidden;
  const std::int64_t columns = options.activation == Activation::kSwiGlu ? 2 * h : h;
  at::Tensor w1 = at::empty({count, d, columns});
  at::Tensor w2 = at::empty({count, h, d});
  at::Tensor b1 = at::empty({count, 1, columns});
  at::Tensor b2 = at::empty({count, 1, d});
  for (std::int64_t i = 0; i < count; ++i) {
    const auto stream = static_cast<std::uint64_t>(first_expert + i) * 4;
    w1[i].copy_(uniform_weights({d, columns}, d, options.seed, stream));
    b1[i].copy_(uniform_weights({1, columns}, d, options.seed, stream + 1));
    w2[i].copy_(uniform_weights({h, d}, h, options.seed, stream + 2));
    b2[i].copy_(uniform_weights({1, d}, h, options.seed, stream + 3));
  }
  w1_ = register_parameter("w1", w1);
  w2_ = register_parameter("w2", w2);
  if (options.bias) {
    b1_ = register_parameter("b1", b1);
    b2_ = register_parameter("b2", b2);
  }
}

at::Tensor GroupedFfn::activate(const at::Tensor& hidden) const {
  switch (options_.activation) {
    case Activation::kRelu:
      return at::relu(hidden);
    case Activation::kGelu:
      return at::gelu(hidden);
    case Activation::kSilu:
      return at::silu(hidden);
    case Activation::kSwiGlu: {
      const auto halves = hidden.chunk(2, -1);
      return at::silu(halves[0]) * halves[1];
    }
  }
  throw InternalError("unknown activation");
}

at::Tensor GroupedFfn::one_by_one(const at::Tensor& rows,
                                  const std::vector<std::int64_t>& expert_rows) const {
  // Taken apart at once: the gradients of slices taken one by one would each be a tensor of zeros
  // as large as all experts, but for the one.
  const auto w1 = w1_.unbind(0), w2 = w2_.unbind(0);
  const auto b1 = b1_.defined() ? b1_.unbind(0) : std::vector<at::Tensor>();
  const auto b2 = b2_.defined() ? b2_.unbind(0) : std::vector<at::Tensor>();
  std::vector<at::Tensor> parts;
  std::int64_t begin = 0;
  for (std::size_t e = 0; e < expert_rows.size(); ++e) {
    // Experts without rows stay in the graph: their gradient is zero, not undefined.
    at::Tensor hidden = at::matmul(rows.narrow(0, begin, expert_rows[e]), w1[e]);
    if (!b1.empty()) hidden = hidden + b1[e];
    at::Tensor result = at::matmul(activate(hidden), w2[e]);
    parts.push_back(b2.empty() ? result : result + b2[e]);
    begin += expert_rows[e];
  }
  return at::cat(parts);
}

at::Tensor GroupedFfn::forward(const at::Tensor& rows,
                               const std::vector<std::int64_t>& expert_rows) {
  check_expert_rows(rows, expert_rows, count());
  check(rows.size(1) == options_.dim, "rows of width ", options_.dim, " expected, got ",
        rows.size(1));
  if (count() == 0) return rows;
  const std::int64_t total = rows.size(0);
  const std::int64_t most = *std::max_element(expert_rows.begin(), expert_rows.end());
  if (static_cast<double>(most * count()) > kMostPadding * static_cast<double>(total)) {
    return one_by_one(rows, expert_rows);
  }

  // Rows of expert e sit at [e, 0 .. expert_rows[e]) of a padded batch.
  const bool even = most * count() == total;
  at::Tensor place;
  at::Tensor batch = rows;
  if (!even) {
    place = at::empty({total}, at::kLong);
    auto* out = place.data_ptr<std::int64_t>();
    for (std::int64_t e = 0; e < count(); ++e) {
      out = std::generate_n(out, expert_rows[static_cast<std::size_t>(e)],
                            [next = e * most]() mutable { return next++; });
    }
    place = place.to(rows.device());
    batch = at::zeros({most * count(), options_.dim}, rows.options()).index_copy(0, place, rows);
  }
  batch = batch.view({count(), most, options_.dim});
  at::Tensor hidden = at::bmm(batch, w1_);
  if (b1_.defined()) hidden = hidden + b1_;
  at::Tensor result = at::bmm(activate(hidden), w2_);
  if (b2_.defined()) result = result + b2_;
  result = result.view({most * count(), options_.dim});
  return even ? result : result.index_select(0, place);
}

ExpertState GroupedFfn::expert_state() const {
  ExpertState state;
  for (std::int64_t e = 0; e < count(); ++e) {
    const std::string prefix = concat(first_expert() + e, ".");
    for (const auto& parameter : named_parameters()) {
      state.emplace_back(prefix + parameter.key(), parameter.value().detach()[e]);
    }
  }
  return state;
}

CustomExperts::CustomExperts(std::int64_t first_expert, std::int64_t count,
                             const ExpertFactory& factory)
    : ExpertGroup("CustomExperts", first_expert, count) {
  for (std::int64_t e = first_expert; e < first_expert + count; ++e) {
    experts_.push_back(factory(e));
    check(experts_.back() != nullptr, "the factory made no expert ", e);
    register_module(concat(e), experts_.back());
  }
}

at::Tensor CustomExperts::forward(const at::Tensor& rows,
                                  const std::vector<std::int64_t>& expert_rows) {
  check_expert_rows(rows, expert_rows, count());
  std::vector<at::Tensor> parts = {rows.narrow(0, 0, 0)};
  std::int64_t begin = 0;
  for (std::size_t e = 0; e < experts_.size(); ++e) {
    if (expert_rows[e] == 0) continue;
    const at::Tensor input = rows.narrow(0, begin, expert_rows[e]);
    const at::Tensor output = experts_[e]->forward(input);
    check(output.sizes() == input.sizes(), "expert ", first_expert() + static_cast<std::int64_t>(e),
          " made shape ", output.sizes(), " of shape ", input.sizes());
    parts.push_back(output);
    begin += expert_rows[e];
  }
  return at::cat(parts);
}

ExpertState CustomExperts::expert_state() const {
  ExpertState state;
  for (std::size_t e = 0; e < experts_.size(); ++e) {
    const std::string prefix = concat(first_expert() + static_cast<std::int64_t>(e), ".");
    for (const auto& parameter : experts_[e]->named_parameters()) {
      state.emplace_back(prefix + parameter.key(), parameter.value().detach());
    }
    for (const auto& buffer : experts_[e]->named_buffers()) {
      state.emplace_back(prefix + buffer.key(), buffer.value().detach());
    }
  }
  return state;
}

}  // namespace thinwire::moe
