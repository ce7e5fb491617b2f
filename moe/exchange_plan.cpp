// The agreement before an exchange. See Note [Plan record].

#include <algorithm>
#include <bit>
#include <cstring>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "thinwire/comm/agreement.h"
#include "thinwire/comm/failure.h"
#include "thinwire/moe/exchange.h"

namespace thinwire::moe {
namespace {

// Note [Plan record]
// Every rank gathers one record of kSlots 64-bit integers from every other. Its size is fixed, so
// that ranks that disagree on the number of experts, or of which one has already failed, still
// meet in the same collective and all learn what is wrong. The row counts follow inline; more
// experts than fit need a second all_gather, once the number of experts is agreed.
constexpr std::int64_t kSlots = 64;
constexpr std::int64_t kInline = 16;  // first slot of the counts, or of a failure's text
constexpr std::int64_t kInlineCounts = kSlots - kInline;
enum Slot : std::int64_t { kFailed, kSequence, kHash, kDType, kTraining, kNeedsGradient, kSums };

using Record = std::vector<std::int64_t>;

Record make_record(const PlanRequest& request, std::uint64_t sequence, std::uint64_t hash) {
  Record record(kSlots, 0);
  record[kFailed] = request.failure.empty() ? 0 : 1;
  record[kSequence] = static_cast<std::int64_t>(sequence);
  record[kHash] = static_cast<std::int64_t>(hash);
  record[kDType] = static_cast<std::int64_t>(request.dtype);
  record[kTraining] = request.training ? 1 : 0;
  record[kNeedsGradient] = request.needs_input_gradient ? 1 : 0;
  record[kSums] = std::bit_cast<std::int64_t>(request.sums[0]);
  record[kSums + 1] = std::bit_cast<std::int64_t>(request.sums[1]);
  if (!request.failure.empty()) {
    const std::size_t room = kInlineCounts * sizeof(std::int64_t) - 1;
    std::memcpy(&record[kInline], request.failure.data(), std::min(room, request.failure.size()));
  } else if (static_cast<std::int64_t>(request.expert_rows.size()) <= kInlineCounts) {
    std::copy(request.expert_rows.begin(), request.expert_rows.end(), record.begin() + kInline);
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

ExchangePlanPtr Exchange::plan(const PlanRequest& request) {
  const std::int64_t experts = placement_.experts;
  THINWIRE_ASSERT(!request.failure.empty() ||
                  static_cast<std::int64_t>(request.expert_rows.size()) == experts);
  const std::uint64_t sequence = sequence_++;
  const Record mine = make_record(request, sequence, agreement_hash_);
  std::vector<Record> records = {mine};
  std::vector<Record> counts = {request.expert_rows};
  if (ranks() > 1) {
    records = all_gather(*group_, mine, request.device, sequence);
    count_bytes_ += (ranks() - 1) * kSlots * static_cast<std::int64_t>(sizeof(std::int64_t));
    check_records(*group_, records, options_.agreement);
    if (experts > kInlineCounts) {
      counts = all_gather(*group_, request.expert_rows, request.device, sequence);
      count_bytes_ += (ranks() - 1) * experts * static_cast<std::int64_t>(sizeof(std::int64_t));
    } else {
      counts.clear();
      for (const Record& record : records) {
        counts.emplace_back(record.begin() + kInline, record.begin() + kInline + experts);
      }
    }
  } else if (!request.failure.empty()) {
    throw InvalidArgument(request.failure);
  }

  auto plan = c10::make_intrusive<ExchangePlan>();
  plan->exchange = shared_from_this();
  plan->sequence = sequence;
  for (const Record& record : records) {
    plan->needs_input_gradient = plan->needs_input_gradient || record[kNeedsGradient] != 0;
    for (std::size_t i = 0; i < plan->sums.size(); ++i) {
      plan->sums[i] += std::bit_cast<double>(record[kSums + i]);
    }
  }
  const auto rows_of = [&](int source, std::int64_t expert) {
    return counts[static_cast<std::size_t>(source)][static_cast<std::size_t>(expert)];
  };
  plan->global_expert_rows.assign(static_cast<std::size_t>(experts), 0);
  for (int source = 0; source < ranks(); ++source) {
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      plan->global_expert_rows[static_cast<std::size_t>(expert)] += rows_of(source, expert);
    }
  }
  const std::int64_t first = placement_.first(rank());
  const std::int64_t local = placement_.count(rank());
  std::int64_t total = 0;
  // begin[source, expert]: where the rows of one source for one local expert arrive.
  std::vector<std::int64_t> begin;
  for (int peer = 0; peer < ranks(); ++peer) {
    std::int64_t sent = 0;
    for (std::int64_t e = placement_.first(peer); e < placement_.first(peer + 1); ++e) {
      sent += rows_of(rank(), e);
    }
    plan->sent.push_back(sent);
    const std::int64_t before = total;
    for (std::int64_t e = first; e < first + local; ++e) {
      begin.push_back(total);
      total += rows_of(peer, e);
    }
    plan->received.push_back(total - before);
  }

  std::vector<std::int32_t> arrival;  // of every row in expert order
  for (std::int64_t e = 0; e < local; ++e) {
    const std::size_t rows_before = arrival.size();
    for (int source = 0; source < ranks(); ++source) {
      const std::int64_t at = begin[static_cast<std::size_t>(source * local + e)];
      for (std::int64_t i = 0; i < rows_of(source, first + e); ++i) {
        arrival.push_back(static_cast<std::int32_t>(at + i));
      }
    }
    plan->expert_rows.push_back(static_cast<std::int64_t>(arrival.size() - rows_before));
  }
  std::vector<std::int32_t> departure(arrival.size());
  for (std::size_t i = 0; i < arrival.size(); ++i) {
    departure[static_cast<std::size_t>(arrival[i])] = static_cast<std::int32_t>(i);
  }
  plan->by_expert = gather_map(std::move(arrival), total);
  plan->by_source = gather_map(std::move(departure), total);
  return plan;
}

}  // namespace thinwire::moe
