#include "thinwire/launch/cli/postmortem.h"

#include <algorithm>
#include <ctime>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "thinwire/comm/join/store_meeting.h"
#include "thinwire/common/error.h"
#include "thinwire/common/json.h"
#include "thinwire/common/printable.h"

namespace thinwire::launch {
namespace {

struct Operation {
  std::string name;  // with its number
  double began = 0;
  std::optional<double> seconds;  // nothing: it did not end
};

struct RankRecord {
  int rank = 0, size = 0;
  std::string host;
  double time = 0;
  std::string operation, text;  // in which it failed, and why
  std::vector<Operation> operations;
};

RankRecord read_record(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw FileError(concat(path.string(), ": cannot be read"));
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  const nlohmann::json document = parse_json(text, path.string());
  const JsonPlace top(document, path.string());
  if (top.at("version").whole() != 1)
    top.fail(concat("version ", top.at("version").whole(), ", this thinwire reads 1"));
  RankRecord record;
  record.rank = static_cast<int>(top.at("rank").whole());
  record.size = static_cast<int>(top.at("size").whole());
  if (record.rank >= record.size) top.fail("a rank is less than the size");
  record.host = printable(top.at("host").text());
  record.time = top.at("time").number();
  record.operation = printable(top.at("failure").at("operation").text());
  record.text = printable(top.at("failure").at("text").text());
  const JsonPlace operations = top.at("operations");
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const JsonPlace one = operations.at(i);
    Operation operation{
        concat(printable(one.at("operation").text()), " #", one.at("sequence").whole()),
        one.at("began").number(), std::nullopt};
    if (!document["operations"][i]["seconds"].is_null())
      operation.seconds = one.at("seconds").number();
    record.operations.push_back(std::move(operation));
  }
  return record;
}

std::vector<RankRecord> read_records(const std::vector<std::filesystem::path>& paths) {
  std::map<int, RankRecord> records;
  const auto add = [&](const std::filesystem::path& path) {
    RankRecord record = read_record(path);
    check(records.empty() || records.begin()->second.size == record.size, path.string(),
          " is of a job of ", record.size, " ranks, another file of one of ",
          records.empty() ? 0 : records.begin()->second.size);
    const int rank = record.rank;
    check(records.emplace(rank, std::move(record)).second, path.string(),
          ": there are two files of rank ", rank);
  };
  for (const auto& path : paths) {
    if (!std::filesystem::is_directory(path)) {
      add(path);
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(path))
      if (entry.path().extension() == ".json") add(entry.path());
  }
  check(!records.empty(), "there are no files of ranks");
  std::vector<RankRecord> sorted;
  for (auto& [rank, record] : records) sorted.push_back(std::move(record));
  return sorted;
}

std::string clock_text(double seconds_since_1970) {
  const auto whole = static_cast<std::time_t>(seconds_since_1970);
  std::tm parts = {};
  gmtime_r(&whole, &parts);
  char text[32];
  const std::size_t length = std::strftime(text, sizeof(text), "%H:%M:%S", &parts);
  const int milliseconds =
      static_cast<int>(1000 * (seconds_since_1970 - static_cast<double>(whole)));
  std::string fraction = std::to_string(1000 + milliseconds).substr(1);
  return concat(std::string(text, length), ".", fraction, " UTC");
}

// What a rank did last, before the operations that did not end.
std::string last_finished(const RankRecord& record) {
  for (auto one = record.operations.rbegin(); one != record.operations.rend(); ++one)
    if (one->seconds) return one->name;
  return "nothing";
}

std::string lines_of(const RankRecord& record) {
  std::string text =
      concat("rank ", record.rank, " on ", record.host, ": gave up in ", record.operation, " at ",
             clock_text(record.time), "\n    it saw: ", record.text,
             "\n    finished last: ", last_finished(record), "\n");
  for (const Operation& one : record.operations)
    if (!one.seconds)
      text += concat("    under way for ", std::max(0.0, record.time - one.began), " s: ", one.name,
                     "\n");
  return text;
}

}  // namespace

std::string postmortem(const std::vector<std::filesystem::path>& files) {
  const std::vector<RankRecord> records = read_records(files);
  const int size = records.front().size;
  std::vector<int> missing;
  for (int rank = 0; rank < size; ++rank)
    if (std::ranges::none_of(records, [&](const auto& one) { return one.rank == rank; }))
      missing.push_back(rank);
  std::map<std::string, std::vector<int>> ranks_in;
  for (const RankRecord& record : records) ranks_in[record.operation].push_back(record.rank);
  const auto first = std::ranges::min_element(records, {}, &RankRecord::time);

  std::string text = concat("A job of ", size, " ranks, of which ", records.size(),
                            " left a record.\n\nWhat happened\n");
  if (!missing.empty())
    text += concat("  rank(s) ", comm::list_of(missing),
                   " left none: killed, hung, on a host that is gone, or ended in good order; look "
                   "at their logs and at the host's (out of memory?) first\n");
  if (ranks_in.size() == 1) {
    text +=
        concat("  all ranks with a record were in the same operation, ", ranks_in.begin()->first,
               missing.empty() ? ": one of them reports a failure of its own, or the network "
                                 "between them failed\n"
                               : ", and waited there for the others\n");
  } else {
    text +=
        "  the ranks were in different operations, so they have not made the same calls, or one "
        "failed alone:\n";
    for (const auto& [operation, ranks] : ranks_in)
      text += concat("    rank(s) ", comm::list_of(ranks), " in ", operation, "\n");
  }
  text += concat("  the first to give up was rank ", first->rank,
                 " (by the clocks of the hosts): ", first->text, "\n\nRanks\n");
  for (const RankRecord& record : records) text += "  " + lines_of(record);
  return text;
}

}  // namespace thinwire::launch
