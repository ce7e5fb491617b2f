// Where the ranks of a process group post their failures.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/common/error.h"

namespace thinwire::comm {

// The store of a duplicate of a process group. It remembers the board of the original, because a
// failure of one is a failure of both: while some ranks fail in an exchange on the duplicate,
// others may have gone on to a collective of the original.
class DuplicateStore final : public c10d::PrefixStore {
 public:
  DuplicateStore(std::string_view name, const c10::intrusive_ptr<c10d::Store>& original)
      : PrefixStore(concat("duplicate/", name), original), board_(board_of(original)) {}

  // Where failures of the group over `store` are posted.
  static c10::intrusive_ptr<c10d::Store> board_of(const c10::intrusive_ptr<c10d::Store>& store) {
    const auto* duplicate = dynamic_cast<const DuplicateStore*>(store.get());
    return duplicate == nullptr ? store : duplicate->board_;
  }

 private:
  c10::intrusive_ptr<c10d::Store> board_;
};

}  // namespace thinwire::comm
