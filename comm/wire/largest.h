// Agreements that cost each rank as much among ten thousand ranks as among two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace c10d {
class ProcessGroup;
}

namespace thinwire::comm {

// Replaces each number by the largest that any rank of the group brings, equally many on all of
// them: an all_reduce. Collective; a failure to start it is told to the other ranks, too. Throws
// CommError naming `operation` and `sequence`. Returns the bytes that this rank sends in a ring.
std::size_t take_largest(c10d::ProcessGroup& group, std::span<std::int64_t> numbers,
                         const char* operation, std::uint64_t sequence);

}  // namespace thinwire::comm
