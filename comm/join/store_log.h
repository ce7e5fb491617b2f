// Texts of several ranks under one key of a store.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::comm {

struct LogEntry {
  int rank;
  std::string text;
};

// A log to which ranks append, and the count of its entries: what would be a key for each rank, and
// a request for each of them by whoever reads, are two keys and two requests. Every member throws
// what the store throws where it is unreachable. As safe for threads as the store.
class StoreLog {
 public:
  StoreLog(c10d::Store& store, const std::string& key)
      : store_(store), log_(key + "/log"), count_(key + "/count") {}

  // Returns how many entries there are now. Whoever sees the count finds the entries.
  std::int64_t append(int rank, std::string_view text);
  std::int64_t count() { return store_.add(count_, 0); }
  bool exists() { return store_.check({log_}); }
  // In the order in which they came; none where the log does not exist. Throws FrameError for what
  // is no log.
  std::vector<LogEntry> read();
  void remove();

 private:
  c10d::Store& store_;
  std::string log_, count_;
};

}  // namespace thinwire::comm
