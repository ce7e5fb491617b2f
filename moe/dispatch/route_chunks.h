// The bookkeeping of an exchange: which rows go where, once or several times, and in which chunk.
// Pure functions, but for exchange_masks().
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/moe/dispatch/expert_placement.h"
#include "thinwire/moe/dispatch/row_routes.h"

namespace thinwire::moe {

// Rows from one rank to another. A row may be for several of the receiver's experts: every pair of
// a row and an expert is one result.
struct SentRows {
  struct Pair {
    std::int32_t row;     // 0 .. count - 1, ascending
    std::int32_t expert;  // of the receiver, ascending within a row
  };
  std::int64_t count = 0;
  std::vector<Pair> pairs;
  // Sender only: the row of each pair among all that the sender passed to plan(), [pairs].
  std::vector<std::int32_t> source;
};

// For every rank, what a rank with `expert_rows` rows for each expert sends to it. Without keys
// every row is sent; with keys rows of one receiver with equal keys are sent once, in the order of
// the keys. Throws InvalidArgument for keys that do not fit.
std::vector<SentRows> rows_to_send(const ExpertPlacement& placement,
                                   const std::vector<std::int64_t>& expert_rows,
                                   const std::vector<std::int64_t>& keys);

// What a receiver knows of a sender that shares no rows: counts of each of its experts.
SentRows rows_of_counts(std::span<const std::int64_t> expert_rows);

// A bit for each expert of a receiver, in whole bytes; equal for all ranks.
std::int64_t mask_bytes(const ExpertPlacement& placement);
// Tells every rank which of its experts want each row. `counts`: rows that come from each rank.
// Collective.
std::vector<SentRows> exchange_masks(c10d::ProcessGroup& group, const ExpertPlacement& placement,
                                     const std::vector<SentRows>& sent,
                                     const std::vector<std::int64_t>& counts, at::Device device,
                                     std::uint64_t sequence);

// Cuts the rows of every pair of ranks into `count` equal parts and fills in the plan's chunks and
// their maps.
void fill_chunks(RowRoutes& plan, const ExpertPlacement& placement, int rank, std::int64_t count,
                 const std::vector<SentRows>& sent, const std::vector<SentRows>& received);

}  // namespace thinwire::moe
