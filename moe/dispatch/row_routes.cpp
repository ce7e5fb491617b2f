// The agreement before an exchange. See Note [Plan record].

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <span>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/moe/dispatch/route_chunks.h"
#include "thinwire/moe/dispatch/token_dispatcher.h"

namespace thinwire::moe {
namespace {

// Note [Plan record]
// Every rank gathers one record of kSlots 64-bit integers from every other. Its size is fixed, so
// that ranks that disagree on the number of experts, or of which one has already failed, still
// meet in the same collective and all learn what is wrong. The row counts follow inline: of every
// expert, and where rows are shared, of the rows for every rank after sharing. More of them than
// fit need a second all_gather, once the number of experts is agreed.
constexpr std::int64_t kSlots = 64;
constexpr std::int64_t kInline = 16;  // first slot of the counts, or of a failure's text
constexpr std::int64_t kInlineCounts = kSlots - kInline;

// Smaller chunks cost more in latency than overlap wins; more than four win little more.
constexpr std::int64_t kChunkBytes = 1 << 19;
constexpr std::int64_t kMostChunks = 4;
enum Slot : std::int64_t { kFailed, kSequence, kHash, kDType, kTraining, kNeedsGradient, kSums };

using Record = std::vector<std::int64_t>;

Record make_record(const RouteRequest& request, const Record& counts, const std::string& failure,
                   std::uint64_t sequence, std::uint64_t hash) {
  Record record(kSlots, 0);
  record[kFailed] = failure.empty() ? 0 : 1;
  record[kSequence] = static_cast<std::int64_t>(sequence);
  record[kHash] = static_cast<std::int64_t>(hash);
  record[kDType] = static_cast<std::int64_t>(request.dtype);
  record[kTraining] = request.training ? 1 : 0;
  record[kNeedsGradient] = request.needs_input_gradient ? 1 : 0;
  record[kSums] = std::bit_cast<std::int64_t>(request.sums[0]);
  record[kSums + 1] = std::bit_cast<std::int64_t>(request.sums[1]);
  if (!failure.empty()) {
    const std::size_t room = kInlineCounts * sizeof(std::int64_t) - 1;
    std::memcpy(&record[kInline], failure.data(), std::min(room, failure.size()));
  } else if (static_cast<std::int64_t>(counts.size()) <= kInlineCounts) {
    std::copy(counts.begin(), counts.end(), record.begin() + kInline);
  }
  return record;
}

// [ranks, record size] of all ranks.
std::vector<Record> all_gather(c10d::ProcessGroup& group, const Record& mine, at::Device device,
                               std::uint64_t sequence) {
  const auto width = static_cast<std::int64_t>(mine.size());
  at::Tensor input = at::empty({width}, at::kLong);
  std::copy(mine.begin(), mine.end(), input.data_ptr<std::int64_t>());
  input = input.to(device);
  at::Tensor output = at::empty({group.getSize() * width}, input.options());
  comm::wait(group, group._allgather_base(output, input), "the plan of an expert exchange",
             sequence);
  const at::Tensor host = output.cpu();
  const auto* data = host.const_data_ptr<std::int64_t>();
  std::vector<Record> records;
  for (int rank = 0; rank < group.getSize(); ++rank) {
    records.emplace_back(data + rank * width, data + (rank + 1) * width);
  }
  return records;
}

// Throws the same InvalidArgument on every rank unless all records fit together.
void check_records(c10d::ProcessGroup& group, const std::vector<Record>& records,
                   const std::string& agreement) {
  for (std::size_t rank = 0; rank < records.size(); ++rank) {
    if (records[rank][kFailed] == 0) continue;
    const auto* text = reinterpret_cast<const char*>(&records[rank][kInline]);
    throw InvalidArgument(concat("rank ", rank, " of the expert exchange: ", text));
  }
  const Record& zero = records.front();
  const auto compare = [&](Slot slot, const char* what, const auto& name) {
    for (std::size_t rank = 1; rank < records.size(); ++rank) {
      check(records[rank][slot] == zero[slot], "the ranks of an expert exchange differ in ", what,
            ": ", name(zero[slot]), " on rank 0, ", name(records[rank][slot]), " on rank ", rank);
    }
  };
  std::uint64_t all_hashes = 0;
  std::int64_t last_sequence = 0;
  bool same = true;
  for (std::size_t rank = 0; rank < records.size(); ++rank) {
    all_hashes = all_hashes * 31 + static_cast<std::uint64_t>(records[rank][kHash]);
    last_sequence = std::max(last_sequence, records[rank][kSequence]);
    same = same && records[rank][kHash] == zero[kHash];
  }
  if (!same) {
    if (group.getStore() != nullptr) {
      // Knows the texts behind the hashes, and throws on every rank.
      comm::agree_on_text(group, concat("moe/", last_sequence, "/", all_hashes),
                          "the options of an expert exchange", agreement);
    }
    throw InvalidArgument("the ranks of an expert exchange have different options");
  }
  const auto number = [](std::int64_t value) { return value; };
  compare(kSequence, "the number of exchanges so far", number);
  compare(kDType, "the type of the tokens",
          [](std::int64_t value) { return c10::toString(static_cast<at::ScalarType>(value)); });
  compare(kTraining, "whether gradients are recorded",
          [](std::int64_t value) { return value != 0 ? "yes" : "no"; });
}

}  // namespace

bool TokenDispatcher::shares_rows() const {
  // Only a rank with several experts can want a row twice.
  return options_.share_rows && ranks() > 1 && placement_.count(0) > 1;
}

RowRoutesPtr TokenDispatcher::plan(const RouteRequest& request) {
  const auto start = std::chrono::steady_clock::now();
  const std::int64_t experts = placement_.experts;
  const bool shares = shares_rows();
  std::string failure = request.failure;
  const std::uint64_t sequence = sequence_++;

  std::vector<SentRows> sent;  // to every rank
  Record mine = request.expert_rows;
  if (failure.empty()) {
    try {
      sent = rows_to_send(placement_, request.expert_rows,
                          shares ? request.row_keys : std::vector<std::int64_t>{});
    } catch (const InvalidArgument& error) {
      failure = error.what();
    }
  }
  if (ranks() == 1 && !failure.empty()) throw InvalidArgument(failure);
  mine.resize(static_cast<std::size_t>(experts));
  if (shares) {
    sent.resize(static_cast<std::size_t>(ranks()));
    for (const SentRows& rows : sent) mine.push_back(rows.count);
  }
  const Record record = make_record(request, mine, failure, sequence, agreement_hash_);
  std::vector<Record> records = {record};
  std::vector<Record> counts = {mine};
  if (ranks() > 1) {
    constexpr auto kWord = static_cast<std::int64_t>(sizeof(std::int64_t));
    records = all_gather(*group_, record, request.device, sequence);
    add_wire(&LegBytes::counts, (ranks() - 1) * kSlots * kWord);
    check_records(*group_, records, options_.agreement);
    const std::int64_t numbers = experts + (shares ? ranks() : 0);
    if (numbers > kInlineCounts) {
      counts = all_gather(*group_, mine, request.device, sequence);
      add_wire(&LegBytes::counts, (ranks() - 1) * numbers * kWord);
    } else {
      counts.clear();
      for (const Record& other : records) {
        counts.emplace_back(other.begin() + kInline, other.begin() + kInline + numbers);
      }
    }
  }

  auto plan = c10::make_intrusive<RowRoutes>();
  plan->exchange = shared_from_this();
  plan->sequence = sequence;
  plan->training = request.training;
  for (const Record& other : records) {
    plan->needs_input_gradient = plan->needs_input_gradient || other[kNeedsGradient] != 0;
    for (std::size_t i = 0; i < plan->sums.size(); ++i) {
      plan->sums[i] += std::bit_cast<double>(other[kSums + i]);
    }
  }
  plan->global_expert_rows.assign(static_cast<std::size_t>(experts), 0);
  for (const Record& of_rank : counts) {
    for (std::size_t e = 0; e < plan->global_expert_rows.size(); ++e) {
      plan->global_expert_rows[e] += of_rank[e];
    }
  }
  if (request.training) {
    agree_on_bases(request.device, sequence);
    ++training_plans_;
  }
  plan->codecs = codecs_;

  // The rows that each rank sends to the experts of this one.
  std::vector<SentRows> received;
  if (shares) {
    std::vector<std::int64_t> counts_here;
    for (const Record& of_rank : counts) {
      counts_here.push_back(of_rank[static_cast<std::size_t>(experts + rank())]);
    }
    received = exchange_masks(*group_, placement_, sent, counts_here, request.device, sequence);
    for (int peer = 0; peer < ranks(); ++peer) {
      if (peer == rank()) continue;
      add_wire(&LegBytes::counts,
               sent[static_cast<std::size_t>(peer)].count * mask_bytes(placement_));
    }
  } else {
    for (const Record& of_rank : counts) {
      received.push_back(rows_of_counts(
          std::span(of_rank).subspan(static_cast<std::size_t>(placement_.first(rank())),
                                     static_cast<std::size_t>(placement_.count(rank())))));
    }
  }

  std::int64_t chunks = options_.chunks;
  if (ranks() == 1) {
    chunks = 1;  // nothing to wait for
  } else if (chunks == 0) {
    // Of numbers that all ranks know.
    std::int64_t rows = 0;
    for (const std::int64_t of_expert : plan->global_expert_rows) rows += of_expert;
    const std::int64_t bytes =
        rows / ranks() * codec(Leg::kDispatch).row_bytes(options_.dim, request.dtype);
    chunks = std::clamp<std::int64_t>(bytes / kChunkBytes, 1, kMostChunks);
  }
  fill_chunks(*plan, placement_, rank(), chunks, sent, received);
  const std::lock_guard lock(mutex_);
  use_.wait_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return plan;
}

}  // namespace thinwire::moe
