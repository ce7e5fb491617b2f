// The routes of one forward pass: who sends which rows to whom.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "thinwire/common/stopwatch.h"
#include "thinwire/moe/rows/leg_bytes.h"
#include "thinwire/moe/rows/row_codec.h"
#include "thinwire/moe/rows/row_ops.h"

namespace thinwire::moe {

class TokenDispatcher;

// A part of the rows that travels and is computed while other parts travel.
//
// Dispatch and its gradient move sent_rows and received_rows, combine and its gradient
// returned_rows and computed_rows; these are more where a row that several experts of one rank want
// is sent once.
struct RouteChunk {
  // Known before rows leave.
  std::vector<std::int64_t> sent_rows;      // [ranks] from this rank to the experts of each
  std::vector<std::int64_t> received_rows;  // [ranks] from each to the experts of this rank
  std::vector<std::int64_t> returned_rows;  // [ranks] results that each computes for this rank
  RowMapPtr by_receiver;  // rows of this rank -> sent rows, sorted by receiver; null: equal
  at::Tensor masks;  // [sent rows, mask bytes] uint8: see fill_arrived(); undefined: none needed

  // Known once they have arrived: the masks come with them.
  bool has_arrived = false;
  std::vector<std::int64_t> computed_rows;  // [ranks] results that this rank computes for each
  std::vector<std::int64_t> expert_rows;    // [local experts] rows of all ranks
  RowMapPtr by_expert;  // received rows -> rows sorted by expert, then by source; null: equal
  RowMapPtr by_source;  // these -> sorted by source, then by expert; null: equal

  at::Tensor dispatched;               // coded rows, where asked for
  Clock::time_point experts_gradient;  // when it came back
};

struct RowRoutes : torch::CustomClassHolder {
  std::shared_ptr<TokenDispatcher> dispatcher;
  std::uint64_t sequence = 0;
  std::vector<std::int64_t> expert_rows;  // [experts] rows of this rank
  std::int64_t sent_rows = 0;             // of this rank, to whatever rank
  std::vector<RouteChunk> chunks;
  RowMapPtr order;    // results in order of arrival -> rows of this rank; null: equal
  RowMapPtr sent_of;  // sent rows, chunk by chunk -> rows of this rank; null: equal
  std::array<RowCodec, kLegs> codecs;  // as they were when the routes were made
  bool needs_input_gradient = false;   // some rank wants the gradient of its rows
  bool training = true;
  bool keep_dispatched = false;
  // Sums over the ranks, in rank order, of the values that they passed to route().
  std::array<double, 2> sums{};

  // A leg under way. Its ticket is the number by which finish() finds what start() began.
  struct Pending {
    c10::intrusive_ptr<c10d::Work> work;
    at::Tensor outgoing, incoming;  // bytes
    at::ScalarType dtype = at::kFloat;
    bool with_masks = false;
  };
  std::unordered_map<std::int64_t, Pending> pending;
  std::int64_t tickets = 0;

  // [local experts] rows of all ranks that this rank's experts have got.
  std::vector<std::int64_t> arrived_rows() const;
  // Whether a leg of these routes passes its rows through a codec.
  bool is_lossy() const;
};
using RowRoutesPtr = c10::intrusive_ptr<RowRoutes>;

// Throws InvalidArgument for other devices: all that ranks agree on for rows is in host memory, as
// are the codecs of rows.
void check_in_host_memory(at::Device device);

// What a rank brings to route().
struct RouteRequest {
  std::vector<std::int64_t> expert_rows;  // [experts] rows of this rank
  // [rows] or empty. Rows of one rank's experts with equal keys are equal, and are sent once. Keys
  // must ascend within an expert.
  std::vector<std::int64_t> row_keys;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;  // of the rows; others are refused
  bool training = true;
  bool needs_input_gradient = false;
  std::array<double, 2> sums{};
  // Not empty: this rank cannot go on, and says why to all the others.
  std::string failure;
};

}  // namespace thinwire::moe
