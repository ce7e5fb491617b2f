// What a dispatcher is made of, has counted and keeps for checkpoints: no row passes through here.

#include <cstdlib>

#include <ATen/ops/tensor.h>
#include <xxhash.h>

#include "thinwire/comm/failure/backward_failure.h"
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

std::shared_ptr<TokenDispatcher> TokenDispatcher::make(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                                       const DispatcherOptions& options) {
  return std::shared_ptr<TokenDispatcher>(new TokenDispatcher(std::move(group), options));
}

TokenDispatcher::TokenDispatcher(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                 const DispatcherOptions& options)
    : group_(std::move(group)),
      options_(options),
      placement_(options.experts, group_ == nullptr ? 1 : group_->getSize()) {
  check(options.dim >= 1, "rows need at least one element, got a width of ", options.dim);
  check(options.chunks >= 0, "rows travel in at least one chunk (0: chosen by size), got ",
        options.chunks);
  own_agreement_ = concat("layer ", options.layer, "\nwidth ", options.dim, "\nexperts ",
                          options.experts, "\nchunks ", options.chunks, "\nshared rows ",
                          options.share_rows ? "on" : "off", "\nseed ", options.seed);
  for (int i = 0; i < kLegs; ++i) {
    const auto leg = static_cast<Leg>(i);
    RowCodec& codec = codecs_[static_cast<std::size_t>(i)];
    codec = RowCodec(options.rows.of(leg));
    own_agreement_ += concat("\n", name_of(leg), " ", codec.spec());
    if (codec.spectral() == nullptr) continue;
    // The layers take turns too: making bases is work for their owner.
    const auto turn = static_cast<std::int64_t>(options.layer) * kLegs + i;
    bases_.push_back({leg,
                      *codec.spectral(),
                      static_cast<int>(turn % ranks()),
                      RowMoments(options.dim),
                      RowMoments(options.dim),
                      {}});
  }
  set_agreement(options.agreement);
  if (ranks() > 1) comm::prepare_for_backward_failures();
}

void TokenDispatcher::set_agreement(const std::string& text) {
  options_.agreement = concat(own_agreement_, "\n", text);
  agreement_hash_ = XXH3_64bits(options_.agreement.data(), options_.agreement.size());
}

LegBytes TokenDispatcher::wire() const {
  const std::lock_guard lock(mutex_);
  return wire_;
}

MoESeconds TokenDispatcher::seconds() const {
  const std::lock_guard lock(mutex_);
  return seconds_;
}

void TokenDispatcher::add_wire(std::int64_t LegBytes::*what, std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  wire_.*what += bytes;
}

void TokenDispatcher::add_seconds(double MoESeconds::*what, double seconds) {
  const std::lock_guard lock(mutex_);
  seconds_.*what += seconds;
}

void TokenDispatcher::agree_on_bases(at::Device device, std::uint64_t sequence) {
  std::vector<BasisLeg*> due;
  std::vector<RowMoments> fresh;
  {
    const std::lock_guard lock(mutex_);
    for (BasisLeg& leg : bases_) {
      if (!leg.is_due(training_routes_)) continue;
      due.push_back(&leg);
      fresh.push_back(std::exchange(leg.fresh, RowMoments(options_.dim)));
    }
  }
  if (due.empty()) return;
  add_wire(&LegBytes::bases,
           moe::agree_on_bases(group_.get(), due, fresh, options_.dim, device, sequence));
  for (const BasisLeg* leg : due) {
    RowCodec& codec = codecs_[static_cast<std::size_t>(leg->leg)];
    codec = codec.with_basis(leg->usable());
  }
}

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
    check(counters->numel() == 2 && counters->scalar_type() == at::kLong, "'", kRowsCounters,
          "' has ", counters->numel(), " elements of ", toString(counters->scalar_type()),
          " in the state, 2 of Long expected");
  }
  for (const BasisLeg& leg : bases_) {
    const auto expect = [&](const std::string& name, const at::Tensor& sums) {
      check(sums.sizes() == leg.fresh.sums().sizes(), "'", name, "' has shape ", sums.sizes(),
            " in the state, ", leg.fresh.sums().sizes(), " in the layer");
      check(sums.scalar_type() == at::kDouble, "'", name, "' is ", toString(sums.scalar_type()),
            " in the state, Double expected");
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
