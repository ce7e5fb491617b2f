// How code of this layer recognises a backend that stands around another one.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace thinwire::comm {

// Implemented beside c10d::Backend. A duplicate of a group over such a backend is one over what it
// wraps: whoever duplicates a group for messages of its own has done with them what is to be done.
class WrapperBackend {
 public:
  virtual ~WrapperBackend() = default;
  virtual const c10::intrusive_ptr<c10d::Backend>& wrapped() const = 0;
};

// `backend`, or the innermost one that it wraps.
inline c10::intrusive_ptr<c10d::Backend> unwrapped(c10::intrusive_ptr<c10d::Backend> backend) {
  while (const auto* wrapper = dynamic_cast<const WrapperBackend*>(backend.get())) {
    backend = c10::intrusive_ptr<c10d::Backend>(wrapper->wrapped());
  }
  return backend;
}

}  // namespace thinwire::comm
