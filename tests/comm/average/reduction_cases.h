// Every codec with every way to average it.
#pragma once

#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "averager_fixture.h"

namespace thinwire::testing {

struct ReductionCase {
  const char* spec;
  const char* strategy;  // "" for the automatic choice
  int world;
  std::vector<int> hosts = {};

  comm::AveragerOptions options() const {
    comm::AveragerOptions options{.seed = 11, .check_replicas_every = 1, .chunk_bytes = 4096};
    if (*strategy != 0) options.strategy = comm::parse_strategy(strategy);
    options.host_of_rank = hosts;
    return options;
  }
};

inline std::ostream& operator<<(std::ostream& out, const ReductionCase& c) {
  return out << c.spec << " by " << (*c.strategy ? c.strategy : "auto") << " on " << c.world;
}

// All pairs that are possible, on 3 ranks; each strategy with its first codec on 1 to 4.
inline std::vector<ReductionCase> all_reductions() {
  struct Pair {
    const char* spec;
    std::vector<const char*> strategies;
  };
  const std::vector<Pair> pairs = {
      {"cast(bf16, error_feedback=on)", {"scatter_reduce", "gather_reduce"}},
      {"cast(fp8_e4m3)", {"scatter_reduce", "gather_reduce"}},
      {"quantize(bits=4, bucket=64)", {"scatter_reduce", "gather_reduce"}},
      {"quantize(bits=3, bucket=128, norm=linf)", {"scatter_reduce"}},
      {"onebit(bucket=64)", {"scatter_reduce", "gather_reduce"}},
      {"topk(density=0.1)", {"gather_reduce", "sparse"}},
      {"topk(density=0.1, select=sampled, values=bf16)", {"gather_reduce", "sparse"}},
      {"topk(density=0.1, values=coded)", {"gather_reduce", "sparse"}},
      {"topk(density=0.1, momentum=0)", {"sparse"}},
      {"ternary(density=0.1)", {"gather_reduce", "sparse"}},
      {"randomk(density=0.1)", {"dense", "gather_reduce"}},
      {"powersgd(rank=2)", {"low_rank", "gather_reduce"}},
      {"powersgd(rank=2, iterations=3)", {"low_rank"}},
      {"powersgd(rank=2, factors=int8)", {"low_rank", "gather_reduce"}},
      {"powersgd(rank=2, iterations=2, factors=int4)", {"low_rank"}},
      {"powersgd(rank=2, factors=ecsq(bits=3))", {"low_rank", "gather_reduce"}},
      {"powersgd(rank=3, iterations=2, factors=ecsq(bits=1))", {"low_rank"}},
      {"ecsq(bits=2.5)", {"scatter_reduce", "gather_reduce"}},
      {"ecsq(bits=0.5)", {"scatter_reduce"}},
      {"ecsq(error=0.3)", {"scatter_reduce"}},
      {"ecsq(as=quantize(bits=4))", {"scatter_reduce", "gather_reduce"}},
      {"ecsq(step=0.5, residual_decay=1)", {"scatter_reduce"}},
      {"spectral(bits=1)", {"scatter_reduce", "gather_reduce"}},
      {"spectral(bits=3, directions=3, every=2)", {"scatter_reduce"}},
  };
  std::vector<ReductionCase> cases = {{"topk(density=0.3)", "", 4}, {"onebit", "", 2}};
  std::set<std::string> seen;
  for (const Pair& pair : pairs) {
    for (const char* strategy : pair.strategies) {
      const bool first = seen.insert(strategy).second;
      for (int world = 1; world <= 4; ++world) {
        if (first || world == 3) cases.push_back({pair.spec, strategy, world});
      }
    }
    if (std::string(pair.spec).starts_with("powersgd")) continue;
    if (std::string(pair.spec).starts_with("ecsq")) continue;
    if (std::string(pair.spec).starts_with("spectral")) continue;
    if (std::string(pair.spec).find("momentum") != std::string::npos) continue;
    const bool first = seen.insert("hierarchical").second;
    cases.push_back({pair.spec, "hierarchical", 4, {7, 3, 3, 7}});
    if (first) cases.push_back({pair.spec, "hierarchical", 4, {0, 0, 1, 1}});
  }
  return cases;
}

}  // namespace thinwire::testing
