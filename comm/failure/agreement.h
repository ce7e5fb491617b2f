// Making sure that all ranks are about to do the same thing, before they do it: backends answer a
// mismatch with wrong numbers, an abort or a hang, never with an explanation.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::comm {

// Throws InvalidArgument, with one text on every rank, unless all ranks pass the same `text`. The
// message names `what`, the first rank that differs from rank 0 and the first line in which it
// does. `text` may have any size: its hash travels through the group's store (see Note [Meetings]),
// itself only where it differs. `key` must be new for every call on a group and equal on all ranks.
// Collective; throws CommError if a rank does not come within the group's timeout.
void agree_on_text(const c10d::ProcessGroup& group, std::string_view key, std::string_view what,
                   std::string_view text);

// agree_on_text() of what `make` gives: for whatever a constructor or a load checks on one rank
// alone. Where `make` throws on one rank, every rank throws InvalidArgument "rank 2: <its message>"
// at once, that rank included, instead of waiting for it; of several that throw the first one
// counts. With one rank the exception of `make` passes as it is.
void agree_on_result(const c10d::ProcessGroup& group, std::string_view key, std::string_view what,
                     const std::function<std::string()>& make);

// A cheap agreement for the hot path: one all_gather of a few bytes, started by the constructor and
// finished by wait(), so that work can be done in between.
class HashAgreement {
 public:
  // `hash` describes what this rank is about to exchange, `sequence` counts the exchanges. `device`
  // is where the group's backend takes tensors.
  HashAgreement(c10d::ProcessGroup& group, std::uint64_t sequence, std::uint64_t hash,
                at::Device device = at::kCPU);

  // Bytes that a rank of so many sends for one.
  static std::uint64_t sent_bytes(int ranks) {
    return kNumbers * sizeof(std::int64_t) * static_cast<std::uint64_t>(ranks - 1);
  }

  // True if all ranks brought the same hash and sequence. Throws CommError when a rank is gone.
  bool wait();

 private:
  static constexpr int kNumbers = 2;

  c10d::ProcessGroup& group_;
  std::uint64_t sequence_;
  at::Tensor mine_;
  at::Tensor all_;
  c10::intrusive_ptr<c10d::Work> work_;
};

}  // namespace thinwire::comm
