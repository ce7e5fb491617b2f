// Names that ProcessGroupGloo.hpp holds pointers to. See ../rendezvous/store.h.
#pragma once

namespace gloo::transport {

class Device;

class UnboundBuffer {
 public:
  virtual ~UnboundBuffer();
};

}  // namespace gloo::transport
