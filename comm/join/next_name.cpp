#include "thinwire/comm/join/next_name.h"

#include "thinwire/common/error.h"

namespace thinwire::comm {

std::string next_name(c10d::ProcessGroup& group, std::string_view purpose) {
  const auto store = group.getStore();
  check(store != nullptr,
        "the process group has no store, so thinwire cannot duplicate it; make it "
        "with launch::init() or comm::make_process_group()");
  const std::string counter = concat("thinwire/made/", purpose, "/", group.getRank());
  return concat(purpose, store->add(counter, 1) - 1);
}

}  // namespace thinwire::comm
