// Where low rank starts from.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace thinwire::comm {

// The averaged Q of each layer's last step, from which its next step starts. Equal on all ranks.
struct WarmStart {
  std::int64_t cols = 0;
  std::vector<float> q;  // columns of `cols` numbers, one after another
  bool operator==(const WarmStart&) const = default;
};
using WarmStarts = std::map<std::string, WarmStart, std::less<>>;

}  // namespace thinwire::comm
