// Where ranks find out that they are in different calls.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::detail {

// A call that one rank sends through a codec and another as it is has two exchanges that never
// meet. No message can be spared for every call to find that out; so a rank whose call takes long
// writes into the group's store what it is in, and compares with what the leader has written.
// Thread-safe.
class CallBoard {
 public:
  explicit CallBoard(c10::intrusive_ptr<c10d::ProcessGroup> group,
                     std::chrono::milliseconds patience = std::chrono::seconds(2));

  // Waits for a call: `number` counts the group's calls, `text` says what this rank is doing, and
  // `finished_within` waits for so long and returns whether it is done. Throws, on every rank that
  // waits, InvalidArgument that names two ranks in different calls, or the failure that another
  // rank has posted.
  void watch(std::uint64_t number, const std::string& text,
             const std::function<bool(std::chrono::milliseconds)>& finished_within);

 private:
  void compare(std::uint64_t number, const std::string& text, bool& compared);

  const c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const std::chrono::milliseconds patience_;
};

}  // namespace thinwire::detail
