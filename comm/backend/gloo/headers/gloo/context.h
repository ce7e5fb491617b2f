// Declaration of what ProcessGroupGloo.hpp calls on a context. See rendezvous/store.h.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
