// Declaration of what ProcessGroupGloo.hpp and gloo/backend.cpp call on a context. See
// rendezvous/store.h.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  void closeConnections();
};

}  // namespace gloo
