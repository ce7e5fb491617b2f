// A store in this process that counts what a server would have to answer.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/HashStore.hpp>

namespace thinwire::testing {

// Thread-safe. Bytes are those of keys and values, in both directions.
class CountingStore final : public c10d::HashStore {
 public:
  using Bytes = std::vector<std::uint8_t>;
  using Store::compareSet;
  using Store::set;

  // All requests but looks (check, and add of 0), whose number depends on the time that ranks wait.
  std::int64_t requests() const { return requests_; }
  std::int64_t looks() const { return looks_; }
  // Of the requests that are no looks.
  std::int64_t bytes() const { return bytes_; }

  void set(const std::string& key, const Bytes& value) override {
    count(key, value.size());
    HashStore::set(key, value);
  }
  Bytes compareSet(const std::string& key, const Bytes& expected, const Bytes& desired) override {
    Bytes found = HashStore::compareSet(key, expected, desired);
    count(key, expected.size() + desired.size() + found.size());
    return found;
  }
  Bytes get(const std::string& key) override {
    Bytes found = HashStore::get(key);
    count(key, found.size());
    return found;
  }
  std::int64_t add(const std::string& key, std::int64_t value) override {
    if (value == 0)
      ++looks_;
    else
      count(key, 2 * sizeof value);
    return HashStore::add(key, value);
  }
  bool check(const std::vector<std::string>& keys) override {
    ++looks_;
    return HashStore::check(keys);
  }
  bool deleteKey(const std::string& key) override {
    count(key, 0);
    return HashStore::deleteKey(key);
  }
  void append(const std::string& key, const Bytes& value) override {
    count(key, value.size());
    HashStore::append(key, value);
  }

 private:
  void count(const std::string& key, std::size_t bytes) {
    ++requests_;
    bytes_ += static_cast<std::int64_t>(key.size() + bytes);
  }

  std::atomic<std::int64_t> requests_ = 0, looks_ = 0, bytes_ = 0;
};

}  // namespace thinwire::testing
