#include "thinwire/comm/join/host_layout.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <map>
#include <string>
#include <system_error>

#include "thinwire/comm/join/error_text.h"
#include "thinwire/comm/join/store_meeting.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// The number of every rank's host, as runs "NUMBERxCOUNT ": ranks are mostly counted host by host.
std::string number_hosts(const std::vector<LogEntry>& words) {
  std::map<int, std::string> name_of;
  for (const LogEntry& word : words) name_of.emplace(word.rank, word.text);
  std::map<std::string, int> numbers;
  std::string runs;
  int number = -1, count = 0;
  const auto end_run = [&] {
    if (count > 0) runs += std::to_string(number) + 'x' + std::to_string(count) + ' ';
    count = 0;
  };
  for (const auto& [rank, name] : name_of) {
    const int next = numbers.try_emplace(name, static_cast<int>(numbers.size())).first->second;
    if (next != number) end_run();
    number = next;
    ++count;
  }
  end_run();
  return runs;
}

std::vector<int> decode_runs(const std::string& runs) {
  std::vector<int> numbers;
  for (std::size_t begin = 0; begin < runs.size(); begin = runs.find(' ', begin) + 1) {
    const int number = std::stoi(runs.substr(begin));
    numbers.insert(numbers.end(), std::stoul(runs.substr(runs.find('x', begin) + 1)), number);
  }
  return numbers;
}

}  // namespace

std::vector<int> hosts_of_ranks(const c10d::ProcessGroup& group, std::string_view key) {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) {
    const std::string reason = std::generic_category().message(errno);
    throw CommError(group.getRank(), "learning the hosts of the ranks", 0,
                    concat("this host has no name: ", reason));
  }
  return hosts_of_ranks(group, key, name.data());
}

std::vector<int> hosts_of_ranks(const c10d::ProcessGroup& group, std::string_view key,
                                std::string_view host) {
  const auto store = group.getStore();
  check(store != nullptr, "a process group without a store cannot tell which ranks share a host");
  const std::string operation = "learning the hosts of the ranks";
  try {
    StoreMeeting meeting(*store, concat("hosts/", key), group.getRank(), group.getSize());
    return decode_runs(meeting.meet(host, number_hosts, operation, store->getTimeout()));
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommError(-1, operation, 0, concat("the store is unreachable: ", error_text(error)));
  }
}

}  // namespace thinwire::comm
