#include "thinwire/comm/average/selector.h"

#include <limits>

#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {

ReductionChoice select_reduction(const ReductionRequest& request) {
  const CodecUse& codec = request.codec;
  check(request.bytes >= 0 && codec.payload_bytes >= 0, "sizes must not be negative, got ",
        request.bytes, " bytes of tensor and ", codec.payload_bytes, " of payload");
  check(request.hosts >= 1 && request.world >= request.hosts,
        "a job has at least one host and one rank a host, got ", request.world, " ranks on ",
        request.hosts, " hosts");
  Strategies candidates =
      possible_strategies(codec, request.world, request.hosts) & request.allowed;
  // The sum of everyone's own approximations is not PowerSGD, which approximates the mean: it sends
  // more and trains worse, so that no speed is a reason for it.
  if (candidates.has(Strategy::kLowRank)) candidates = {Strategy::kLowRank};
  const ReductionPlace place = {.tensor_bytes = static_cast<double>(request.bytes),
                                .world = request.world,
                                .hosts = request.hosts,
                                .frame_bytes = kFrameHeaderBytes};
  const BackendLink* link = request.link;
  const auto ranks = static_cast<std::size_t>(request.world);
  ReductionChoice choice;
  choice.uncompressed_cost = link ? link->predict(Collective::kAllReduce, uncompressed_bytes(place))
                                  : uncompressed_bytes(place);
  choice.cost = choice.uncompressed_cost;
  // Nothing travels: there is nothing to gain.
  if (request.world == 1 || request.bytes == 0) return choice;
  const double limit = request.required_gain > 0 ? choice.uncompressed_cost / request.required_gain
                                                 : std::numeric_limits<double>::infinity();
  for (const Strategy strategy : kStrategies) {
    if (!candidates.has(strategy)) continue;
    // The time inside a host is known from the pairs alone.
    if (strategy == Strategy::kHierarchical && link && link->pairs.size() != ranks) continue;
    const double cost = link ? message_seconds(strategy, codec, place, *link) +
                                   coding_seconds(strategy, codec, place)
                             : host_bytes(strategy, codec, place);
    if (cost > limit || (choice.compress && cost >= choice.cost)) continue;
    choice.compress = true;
    choice.strategy = strategy;
    choice.cost = cost;
  }
  return choice;
}

Strategy usual_strategy(const CodecUse& use, int world, double frame_bytes) {
  const ReductionPlace place = {.world = world, .frame_bytes = frame_bytes};
  const auto sent = [&](Strategy strategy) { return sent_bytes(strategy, use, place); };
  switch (use.facts.form) {
    case CodecFacts::Form::kLowRank:
      return Strategy::kLowRank;
    case CodecFacts::Form::kSparse:
      return sent(Strategy::kSparse) < sent(Strategy::kGatherReduce) ? Strategy::kSparse
                                                                     : Strategy::kGatherReduce;
    case CodecFacts::Form::kSlots:
      return Strategy::kScatterReduce;
    case CodecFacts::Form::kBlocks:
      break;
  }
  if (use.summable) return Strategy::kDense;
  return use.can_be_cut ? Strategy::kScatterReduce : Strategy::kGatherReduce;
}

}  // namespace thinwire::comm
