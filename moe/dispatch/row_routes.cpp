// The agreement before an exchange. See Note [Route record].

#include "thinwire/moe/dispatch/row_routes.h"

#include <algorithm>

#include "thinwire/common/error.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/moe/dispatch/route_chunks.h"
#include "thinwire/moe/dispatch/route_record.h"
#include "thinwire/moe/dispatch/token_dispatcher.h"

namespace thinwire::moe {
namespace {

// Smaller chunks cost more in latency than overlap wins; more than four win little more.
constexpr std::int64_t kChunkBytes = 1 << 19;
constexpr std::int64_t kMostChunks = 4;

// In how many parts rows travel, of numbers that all ranks know.
std::int64_t chunks_for(const std::vector<RouteRecord>& records, std::int64_t row_bytes) {
  const auto ranks = static_cast<std::int64_t>(records.size());
  std::int64_t pairs = 0;
  for (const RouteRecord& record : records) pairs += record.pairs;
  return std::clamp<std::int64_t>(pairs / ranks * row_bytes / kChunkBytes, 1, kMostChunks);
}

}  // namespace

void check_in_host_memory(at::Device device) {
  check(device.is_cpu(), "tokens in host memory expected, got them on ", device.str(),
        ": experts in GPU memory are not there yet; move tokens and layer to the CPU");
}

std::vector<std::int64_t> RowRoutes::arrived_rows() const {
  std::vector<std::int64_t> rows;
  for (const RouteChunk& chunk : chunks) {
    rows.resize(chunk.expert_rows.size(), 0);
    for (std::size_t e = 0; e < rows.size(); ++e) rows[e] += chunk.expert_rows[e];
  }
  return rows;
}

bool RowRoutes::is_lossy() const {
  return std::any_of(codecs.begin(), codecs.end(), [](const RowCodec& c) { return c.active(); });
}

bool TokenDispatcher::shares_rows() const {
  // Only a rank with several experts can want a row twice.
  return options_.share_rows && ranks() > 1 && placement_.count(0) > 1;
}

RowRoutesPtr TokenDispatcher::route(const RouteRequest& request) {
  const auto start = Clock::now();
  const auto world = static_cast<std::size_t>(ranks());
  std::string failure = request.failure;
  RouteRecord mine = {.sequence = sequence_++,
                      .agreement = agreement_hash_,
                      .dtype = request.dtype,
                      .training = request.training,
                      .needs_input_gradient = request.needs_input_gradient,
                      .sums = request.sums};

  std::vector<SentRows> sent(world);  // to every rank
  if (failure.empty()) {
    try {
      check_in_host_memory(request.device);
      sent = rows_to_send(placement_, request.expert_rows,
                          shares_rows() ? request.row_keys : std::vector<std::int64_t>{});
    } catch (const InvalidArgument& error) {
      failure = error.what();
    }
  }
  if (ranks() == 1 && !failure.empty()) throw InvalidArgument(failure);
  mine.failed = !failure.empty();
  std::vector<std::int64_t> rows;
  for (const SentRows& to : sent) {
    rows.push_back(to.count);
    mine.pairs += static_cast<std::int64_t>(to.pairs.size());
  }
  std::vector<RouteRecord> records = {mine};
  records[0].rows = rows[0];
  if (ranks() > 1) {
    records = exchange_records(*group_, mine, rows, at::kCPU);
    add_wire(&LegBytes::counts, (ranks() - 1) * route_record_bytes());
    if (has_failed(records)) {
      add_wire(&LegBytes::counts, (ranks() - 1) * failure_text_bytes());
      throw_failure(*group_, records, failure, at::kCPU);
    }
    check_records(*group_, records, options_.agreement);
  }
  return guard("the routes of an expert exchange", mine.sequence, [&] {
    auto routes = c10::make_intrusive<RowRoutes>();
    routes->dispatcher = shared_from_this();
    routes->sequence = mine.sequence;
    routes->expert_rows = request.expert_rows;
    routes->training = request.training;
    std::vector<std::int64_t> received_rows;
    for (const RouteRecord& record : records) {
      routes->needs_input_gradient = routes->needs_input_gradient || record.needs_input_gradient;
      for (std::size_t i = 0; i < record.sums.size(); ++i) routes->sums[i] += record.sums[i];
      received_rows.push_back(record.rows);
    }
    if (request.training) {
      agree_on_bases(request.device, mine.sequence);
      ++training_routes_;
    }
    routes->codecs = codecs_;
    std::int64_t chunks = options_.chunks;
    if (ranks() == 1) {
      chunks = 1;  // nothing to wait for
    } else if (chunks == 0) {
      chunks = chunks_for(records, codec(Leg::kDispatch).row_bytes(options_.dim, request.dtype));
    }
    fill_chunks(*routes, placement_, rank(), chunks, sent, received_rows);
    add_seconds(&MoESeconds::exchange, seconds_since(start));
    return routes;
  });
}

}  // namespace thinwire::moe
