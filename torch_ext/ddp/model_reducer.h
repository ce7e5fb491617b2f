// c10d's Reducer, and what thinwire needs to know and to change of its state between passes.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <torch/csrc/distributed/c10d/reducer.hpp>

namespace thinwire::detail {

// The Reducer averages the first backward pass after prepare_for_backward() and lets all others
// add to the local gradients without a word. Here its owner decides for each pass.
class ModelReducer final : public c10d::Reducer {
 public:
  using Reducer::Reducer;

  // Whether a backward pass that begins now is averaged.
  bool is_prepared() const;
  // The next backward pass adds to the local gradients.
  void skip_backward();
  // Before each backward pass that is averaged. The order of the gradients, by which the Reducer
  // builds its buckets anew, is that of the last pass before it does.
  void begin_backward();
  // The parameters by number in the order in which the buckets lie, or will once the Reducer builds
  // them anew; empty while it does not know.
  std::vector<std::int64_t> bucket_order() const;
  // Throws InvalidArgument for what is not each parameter once.
  void check_bucket_order(const std::vector<std::int64_t>& order) const;
  // The next rebuild_buckets() builds them in this order. Throws as check_bucket_order().
  void restore_bucket_order(const std::vector<std::int64_t>& order);
  // Before the first backward pass that is averaged with static_graph: forgets how often earlier
  // passes, which were not, have used the parameters; the Reducer would expect the sum in every
  // pass to come.
  void begin_static_graph();
};

// Tells of a parameter of a Reducer with find_unused_parameters whether this rank has used it in
// the step under way. For the Reducer's hook alone, which runs under its lock; the Reducer outlives
// it.
std::function<bool(const c10::TensorImpl*)> locally_used(c10d::Reducer& reducer);

}  // namespace thinwire::detail
