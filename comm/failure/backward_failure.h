// Failures of a backward pass that other ranks wait for.
#pragma once

#include <cstdint>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::comm {

// Note [Backward failures]
// In a backward pass the engine runs the user's nodes (a model's layers, hooks) between those of
// the exchange, and an exception there ends the pass without any node of the exchange hearing of
// it: the other ranks would wait for this one until their timeout and call it hung. The engine does
// tell itself, though, by a virtual function, and LibTorch lets a library put an engine of its own
// in place of the default one. Ours changes nothing but that function.
//
// Where the engine in place is already another (Python's), that one stays. Its passes are watched
// by a callback for their end: one that is thrown away uncalled tells that there was an exception,
// and the others are told that much at once, though not its text.

// Puts the watching engine in place. Thread-safe; does nothing the second time.
void prepare_for_backward_failures();

// Call in a node's backward: if this backward pass ends with an exception, from now on and wherever
// it comes from, it is posted to the other ranks of `group`, with its text where our engine is in
// place, and becomes the named error of raise_collective_failure() there. `operation` must
// outlive the pass. With one rank, or a null group, nothing is watched.
void tell_backward_failure(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                           const char* operation, std::uint64_t sequence);

}  // namespace thinwire::comm
