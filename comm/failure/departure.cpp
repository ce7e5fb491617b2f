#include "thinwire/comm/failure/departure.h"

#include <exception>

#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire::comm {
namespace {

std::string departure_key(int rank) {
  return concat("thinwire/departed/", rank);
}

}  // namespace

void say_departure(const c10d::ProcessGroup& group, const std::string& reason) noexcept {
  try {
    if (group.getSize() == 1 || !group.getStore()) return;
    group.getStore()->set(departure_key(group.getRank()),
                          std::vector<std::uint8_t>(reason.begin(), reason.end()));
  } catch (const std::exception& error) {
    log::debug("the other ranks cannot be told that this one leaves: ", error.what());
  }
}

void take_back_departure(const c10d::ProcessGroup& group) noexcept {
  try {
    if (group.getSize() > 1 && group.getStore())
      group.getStore()->deleteKey(departure_key(group.getRank()));
  } catch (const std::exception& error) {
    log::debug("the store keeps that this rank has left: ", error.what());
  }
}

std::string departure_of(const c10d::ProcessGroup& group, int rank) noexcept {
  try {
    const auto store = group.getStore();
    if (!store || !store->check({departure_key(rank)})) return "";
    return store->get_to_str(departure_key(rank));
  } catch (const std::exception& error) {
    log::debug("the store does not tell whether rank ", rank, " has left: ", error.what());
    return "";
  }
}

}  // namespace thinwire::comm
