// What is ordered after what: vector clocks, one entry a stream.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace thinwire::fake_gpu {

// Of each stream, how many of its tasks are known to have run before.
class Clock {
 public:
  std::uint64_t at(std::size_t stream) const {
    return stream < counts_.size() ? counts_[stream] : 0;
  }
  void raise(std::size_t stream, std::uint64_t count) {
    if (stream >= counts_.size()) counts_.resize(stream + 1);
    counts_[stream] = std::max(counts_[stream], count);
  }
  void join(const Clock& other) {
    for (std::size_t s = 0; s < other.counts_.size(); ++s) raise(s, other.counts_[s]);
  }

 private:
  std::vector<std::uint64_t> counts_;
};

// One piece of work of a stream, with what it is ordered after: `seen` counts the task itself too.
struct Task {
  std::string what;
  std::size_t stream = 0;
  std::uint64_t number = 0;  // from 1, in the order of the stream
  Clock seen = {};
};

inline bool ordered(const Task& a, const Task& b) {
  return a.seen.at(b.stream) >= b.number || b.seen.at(a.stream) >= a.number;
}

}  // namespace thinwire::fake_gpu
