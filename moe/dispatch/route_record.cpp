#include "thinwire/moe/dispatch/route_record.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/error.h"

namespace thinwire::moe {
namespace {

// Words of 64 bits.
enum Slot : std::int64_t {
  kFailed,
  kSequence,
  kAgreement,
  kDType,
  kTraining,
  kNeedsGradient,
  kPairs,
  kRows,
  kSums,
  kSlots = kSums + 2
};

// Room for the text of a failure; a longer one is cut.
constexpr std::int64_t kTextBytes = 1024;

void write_record(const RouteRecord& record, std::int64_t rows, std::int64_t* words) {
  words[kFailed] = record.failed ? 1 : 0;
  words[kSequence] = static_cast<std::int64_t>(record.sequence);
  words[kAgreement] = static_cast<std::int64_t>(record.agreement);
  words[kDType] = static_cast<std::int64_t>(record.dtype);
  words[kTraining] = record.training ? 1 : 0;
  words[kNeedsGradient] = record.needs_input_gradient ? 1 : 0;
  words[kPairs] = record.pairs;
  words[kRows] = rows;
  words[kSums] = std::bit_cast<std::int64_t>(record.sums[0]);
  words[kSums + 1] = std::bit_cast<std::int64_t>(record.sums[1]);
}

RouteRecord read_record(const std::int64_t* words) {
  return {.failed = words[kFailed] != 0,
          .sequence = static_cast<std::uint64_t>(words[kSequence]),
          .agreement = static_cast<std::uint64_t>(words[kAgreement]),
          .dtype = static_cast<at::ScalarType>(words[kDType]),
          .training = words[kTraining] != 0,
          .needs_input_gradient = words[kNeedsGradient] != 0,
          .pairs = words[kPairs],
          .rows = words[kRows],
          .sums = {std::bit_cast<double>(words[kSums]), std::bit_cast<double>(words[kSums + 1])}};
}

// Of the ranks that are in one exchange; they may differ, and all ranks get the same number.
std::uint64_t last_sequence(const std::vector<RouteRecord>& records) {
  return std::ranges::max(records, {}, &RouteRecord::sequence).sequence;
}

// What each rank cannot go on for, "" where it can.
std::vector<std::string> reasons_of_all(c10d::ProcessGroup& group, const std::string& mine,
                                        at::Device device, std::uint64_t sequence) {
  constexpr const char* kOperation = "why an expert exchange failed";
  return comm::guard(group, kOperation, sequence, [&] {
    at::Tensor input = at::zeros({kTextBytes}, at::kByte);
    std::memcpy(input.mutable_data_ptr<std::uint8_t>(), mine.data(),
                std::min(mine.size(), static_cast<std::size_t>(kTextBytes) - 1));
    input = input.to(device);
    at::Tensor output = at::empty({group.getSize() * kTextBytes}, input.options());
    comm::wait(group, group._allgather_base(output, input), kOperation, sequence);
    const at::Tensor host = output.cpu();
    const auto* text = reinterpret_cast<const char*>(host.const_data_ptr<std::uint8_t>());
    std::vector<std::string> all;
    for (int rank = 0; rank < group.getSize(); ++rank) all.emplace_back(text + rank * kTextBytes);
    return all;
  });
}

// Throws unless the same kind of fact is equal in all records.
template <typename Fact, typename Name>
void compare_fact(const std::vector<RouteRecord>& records, Fact RouteRecord::*fact,
                  const char* what, const Name& name) {
  for (std::size_t rank = 1; rank < records.size(); ++rank) {
    check(records[rank].*fact == records[0].*fact, "the ranks of an expert exchange differ in ",
          what, ": ", name(records[0].*fact), " on rank 0, ", name(records[rank].*fact),
          " on rank ", rank);
  }
}

}  // namespace

std::int64_t route_record_bytes() {
  return kSlots * static_cast<std::int64_t>(sizeof(std::int64_t));
}

std::vector<RouteRecord> exchange_records(c10d::ProcessGroup& group, const RouteRecord& mine,
                                          const std::vector<std::int64_t>& rows,
                                          at::Device device) {
  constexpr const char* kOperation = "the routes of an expert exchange";
  return comm::guard(group, kOperation, mine.sequence, [&] {
    const int ranks = group.getSize();
    at::Tensor input = at::empty({ranks, kSlots}, at::kLong);
    for (int rank = 0; rank < ranks; ++rank) {
      write_record(mine, rows[static_cast<std::size_t>(rank)],
                   input.mutable_data_ptr<std::int64_t>() + rank * kSlots);
    }
    input = input.to(device);
    at::Tensor output = at::empty({ranks, kSlots}, input.options());
    std::vector<std::int64_t> one_each(static_cast<std::size_t>(ranks), 1);
    auto receive = one_each;
    comm::wait(group, group.alltoall_base(output, input, receive, one_each), kOperation,
               mine.sequence);
    const at::Tensor host = output.cpu();
    std::vector<RouteRecord> records;
    for (int rank = 0; rank < ranks; ++rank) {
      records.push_back(read_record(host.const_data_ptr<std::int64_t>() + rank * kSlots));
    }
    return records;
  });
}

bool has_failed(const std::vector<RouteRecord>& records) {
  return std::ranges::any_of(records, &RouteRecord::failed);
}

std::int64_t failure_text_bytes() {
  return kTextBytes;
}

void throw_failure(c10d::ProcessGroup& group, const std::vector<RouteRecord>& records,
                   const std::string& failure, at::Device device) {
  const auto texts = reasons_of_all(group, failure, device, last_sequence(records));
  const auto first = std::ranges::find_if(records, &RouteRecord::failed) - records.begin();
  throw InvalidArgument(concat(
      "rank ", first, " of the expert exchange: ", texts.at(static_cast<std::size_t>(first))));
}

void check_records(const c10d::ProcessGroup& group, const std::vector<RouteRecord>& records,
                   const std::string& agreement) {
  std::uint64_t all_hashes = 0;
  bool same = true;
  for (const RouteRecord& record : records) {
    all_hashes = all_hashes * 31 + record.agreement;
    same = same && record.agreement == records[0].agreement;
  }
  if (!same) {
    if (group.getStore() != nullptr) {
      // Knows the texts behind the hashes, and throws on every rank.
      comm::agree_on_text(group, concat("moe/", last_sequence(records), "/", all_hashes),
                          "the options of an expert exchange", agreement);
    }
    throw InvalidArgument("the ranks of an expert exchange have different options");
  }
  compare_fact(records, &RouteRecord::sequence, "the number of exchanges so far",
               [](std::uint64_t value) { return value; });
  compare_fact(records, &RouteRecord::dtype, "the type of the tokens",
               [](at::ScalarType type) { return c10::toString(type); });
  compare_fact(records, &RouteRecord::training, "whether gradients are recorded",
               [](bool value) { return value ? "yes" : "no"; });
}

}  // namespace thinwire::moe
