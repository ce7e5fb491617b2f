// What a dispatcher keeps for checkpoints.

#include <cstdlib>

#include <ATen/ops/tensor.h>

#include "thinwire/common/error.h"
#include "thinwire/moe/dispatch/token_dispatcher.h"

namespace thinwire::moe {
namespace {

constexpr const char* kRowsCounters = "rows.counters";

std::string rows_prefix(Leg leg) {
  return concat("rows.", name_of(leg), ".");
}

const at::Tensor* find(const NamedTensors& state, const std::string& name) {
  const auto found = state.find(name);
  return found == state.end() ? nullptr : &found->second;
}

// The moments in a state that are for this rank: names and tensors. With another number of ranks
// their sum stays what it was.
NamedTensors fresh_moments(const NamedTensors& state, Leg leg, int rank, int ranks) {
  const std::string prefix = rows_prefix(leg) + "fresh.";
  NamedTensors found;
  for (const auto& item : state) {
    if (!item.first.starts_with(prefix)) continue;
    const int source = std::atoi(item.first.c_str() + prefix.size());
    if (source % ranks == rank) found.insert(item);
  }
  return found;
}

}  // namespace

NamedTensors TokenDispatcher::state() const {
  NamedTensors all = {
      {kRowsCounters, at::tensor({static_cast<std::int64_t>(sequence_), training_routes_})}};
  for (const BasisLeg& leg : bases_) {
    const std::string prefix = rows_prefix(leg.leg);
    if (leg.message.defined()) all.emplace(prefix + "basis", leg.message);
    if (leg.owner == rank()) all.emplace(prefix + "moments", leg.running.sums());
    all.emplace(concat(prefix, "fresh.", rank()), leg.fresh.sums());
  }
  return all;
}

void TokenDispatcher::check_state(const NamedTensors& state) const {
  if (const auto* counters = find(state, kRowsCounters)) {
    check(counters->numel() == 2, "'", kRowsCounters, "' has ", counters->numel(),
          " elements in the state, 2 expected");
  }
  for (const BasisLeg& leg : bases_) {
    const auto expect = [&](const std::string& name, const at::Tensor& sums) {
      check(sums.sizes() == leg.fresh.sums().sizes(), "'", name, "' has shape ", sums.sizes(),
            " in the state, ", leg.fresh.sums().sizes(), " in the layer");
    };
    const std::string moments = rows_prefix(leg.leg) + "moments";
    if (const auto* sums = find(state, moments)) expect(moments, *sums);
    for (const auto& [name, sums] : fresh_moments(state, leg.leg, rank(), ranks())) {
      expect(name, sums);
    }
  }
}

void TokenDispatcher::load_state(const NamedTensors& state) {
  check_state(state);
  if (const auto* counters = find(state, kRowsCounters)) {
    sequence_ = static_cast<std::uint64_t>((*counters)[0].item<std::int64_t>());
    training_routes_ = (*counters)[1].item<std::int64_t>();
  }
  for (BasisLeg& leg : bases_) {
    const std::string prefix = rows_prefix(leg.leg);
    const auto* message = find(state, prefix + "basis");
    // Another number of bits needs another basis; the moments are good for it.
    leg.message = at::Tensor();
    leg.basis = nullptr;
    if (message != nullptr && is_made_for(*message, leg.options, options_.dim)) {
      leg.take(*message, options_.dim);
    }
    RowCodec& codec = codecs_[static_cast<std::size_t>(leg.leg)];
    codec = codec.with_basis(leg.usable());
    leg.running.clear();
    leg.fresh.clear();
    const auto* moments = find(state, prefix + "moments");
    if (moments != nullptr && leg.owner == rank()) leg.running.sums().add_(*moments);
    for (const auto& [name, sums] : fresh_moments(state, leg.leg, rank(), ranks())) {
      leg.fresh.sums().add_(sums);
    }
  }
}

}  // namespace thinwire::moe
