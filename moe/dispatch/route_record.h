// What the ranks tell each other before rows leave.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::moe {

// Note [Route record]
// One all_to_all of a record of fixed size, so that ranks that disagree on whatever it is, or of
// which one cannot go on, still meet in the same collective and all learn what is wrong. It tells
// every rank how many rows will come from each other: O(ranks) numbers. Which of its experts want
// them comes with the rows (expert masks), and what all experts got together nobody needs to know
// before they are computed. The text of a failure travels in a second collective, which all ranks
// enter, since all of them know that there is one.
struct RouteRecord {
  bool failed = false;
  std::uint64_t sequence = 0;   // number of this exchange
  std::uint64_t agreement = 0;  // hash of what must be equal on all ranks
  at::ScalarType dtype = at::kFloat;
  bool training = false;
  bool needs_input_gradient = false;
  std::int64_t pairs = 0;  // rows of the sender for whatever expert, before any is shared
  std::int64_t rows = 0;   // rows from the sender to the reader
  std::array<double, 2> sums{};
};

// Bytes of a record on the wire.
std::int64_t route_record_bytes();

// The records of all ranks. rows: [ranks] of this rank to each, in place of mine.rows. Collective;
// throws CommError when a rank is gone.
std::vector<RouteRecord> exchange_records(c10d::ProcessGroup& group, const RouteRecord& mine,
                                          const std::vector<std::int64_t>& rows, at::Device device);

// Whether a rank has failed; all ranks call throw_failure() then.
bool has_failed(const std::vector<RouteRecord>& records);
// Bytes that throw_failure() sends to each rank.
std::int64_t failure_text_bytes();
// Throws InvalidArgument with the reason of the first rank that has failed, the same on every rank.
// failure: of this rank, "" where it has not failed. Collective.
[[noreturn]] void throw_failure(c10d::ProcessGroup& group, const std::vector<RouteRecord>& records,
                                const std::string& failure, at::Device device);

// Throws the same InvalidArgument on every rank unless all records fit together. agreement: the
// text behind this rank's hash. Collective through the group's store where it throws.
void check_records(const c10d::ProcessGroup& group, const std::vector<RouteRecord>& records,
                   const std::string& agreement);

}  // namespace thinwire::moe
