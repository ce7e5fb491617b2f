#include "thinwire/comm/join/host_layout.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <map>
#include <string>
#include <system_error>

#include "thinwire/common/error.h"

namespace thinwire::comm {

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
  const auto key_of = [&](int rank) { return concat("thinwire/hosts/", key, "/", rank); };
  store->set(key_of(group.getRank()), std::vector<std::uint8_t>(host.begin(), host.end()));
  std::map<std::string, int> numbers;
  std::vector<int> hosts;
  for (int rank = 0; rank < group.getSize(); ++rank) {
    try {
      const auto bytes = store->get(key_of(rank));
      const std::string name(bytes.begin(), bytes.end());
      hosts.push_back(numbers.try_emplace(name, static_cast<int>(numbers.size())).first->second);
    } catch (const std::exception& error) {
      throw CommError(rank, "learning the hosts of the ranks", 0, error.what());
    }
  }
  return hosts;
}

}  // namespace thinwire::comm
