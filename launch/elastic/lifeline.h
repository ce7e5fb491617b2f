// Whether another process still exists, as its host's kernel tells.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace thinwire::launch {

// A port on which a process listens for nobody, for as long as it exists: connections are accepted
// while it computes, or is stopped, and refused from the moment it has ended, however it did. So
// those who miss it need not wait until its silence is long enough. Thread-safe, but for
// construction and destruction.
class Lifeline {
 public:
  // On a free port of `host`'s own address alone. Never throws: without a port address() is empty,
  // and a process's silence has to do.
  explicit Lifeline(const std::string& host) noexcept;
  ~Lifeline();

  // HOST:PORT
  const std::string& address() const { return address_; }
  // Lets go of those who have looked; now and then, before their queue is full.
  void hang_up() noexcept;

 private:
  struct Port;
  std::unique_ptr<Port> port_;
  std::string address_;
};

enum class Answer {
  kNone,      // within the patience, or the address is no good
  kAccepted,  // the process exists, or another one listens there
  kRefused,   // nobody listens there, or what lies between lets nobody through
};

// Looks at each address, at all together for at most `patience`.
std::vector<Answer> look_at(const std::vector<std::string>& addresses,
                            std::chrono::milliseconds patience);

}  // namespace thinwire::launch
