// The bookkeeping of routes: which rows go where, once or several times, and in which chunk. Pure
// functions.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

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
  // Sender only: the row of each pair among all that the sender passed to route(), [pairs].
  std::vector<std::int32_t> source;
};

// For every rank, what a rank with `expert_rows` rows for each expert sends to it. Without keys
// every row is sent; with keys rows of one receiver with equal keys are sent once, in the order of
// the keys. Throws InvalidArgument for keys that do not fit.
std::vector<SentRows> rows_to_send(const ExpertPlacement& placement,
                                   const std::vector<std::int64_t>& expert_rows,
                                   const std::vector<std::int64_t>& keys);

// Bytes of a row's mask, equal for all ranks: a bit for each expert of a receiver; none where no
// rank has several, so that there is nothing to tell.
std::int64_t mask_bytes(const ExpertPlacement& placement);

// Cuts the rows of every pair of ranks into `count` equal parts and fills in all that is known
// before they leave. received_rows: [ranks] from each. With one rank the chunks have
// arrived.
void fill_chunks(RowRoutes& routes, const ExpertPlacement& placement, int rank, std::int64_t count,
                 const std::vector<SentRows>& sent, const std::vector<std::int64_t>& received_rows);

// Fills in the rest of a chunk of which rows have come. masks: [received rows, mask bytes] uint8
// of the host, expert e at bit e % 8 of byte e / 8; undefined where mask_bytes() is 0.
void fill_arrived(RouteChunk& chunk, const ExpertPlacement& placement, int rank,
                  const at::Tensor& masks);

}  // namespace thinwire::moe
