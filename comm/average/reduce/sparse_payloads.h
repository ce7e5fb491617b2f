// What averaging by owners of index ranges sends, for the reduction and for whoever reckons with
// it.
#pragma once

namespace thinwire::comm {

// What a rank sends in all, in payloads of its own entries, where owners keep what they do not
// send: on two ranks that is everything, and on more it stays the same.
inline constexpr double kSparsePayloads = 1.5;

}  // namespace thinwire::comm
