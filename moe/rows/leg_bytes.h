// The legs of an expert exchange and the bytes that went over them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace thinwire::moe {

// The four times that rows cross the network in one training step.
enum class Leg { kDispatch = 0, kCombine = 1, kCombineBackward = 2, kDispatchBackward = 3 };
inline constexpr int kLegs = 4;
// "dispatch", "combine", "combine_backward", "dispatch_backward".
const char* name_of(Leg leg);

// Bytes that this rank handed to the network, payload only. Rows that stay on this rank cost
// nothing.
struct LegBytes {
  std::array<std::int64_t, kLegs> rows{};
  std::int64_t counts = 0;  // of the plans: row counts, and which experts want a shared row
  std::int64_t bases = 0;   // of agreeing on the bases of spectral rows

  std::int64_t total() const { return rows[0] + rows[1] + rows[2] + rows[3] + counts + bases; }
  LegBytes& operator+=(const LegBytes& other) {
    for (std::size_t leg = 0; leg < rows.size(); ++leg) rows[leg] += other.rows[leg];
    counts += other.counts;
    bases += other.bases;
    return *this;
  }
  LegBytes operator-(const LegBytes& earlier) const {
    LegBytes difference = *this;
    for (std::size_t leg = 0; leg < rows.size(); ++leg) difference.rows[leg] -= earlier.rows[leg];
    difference.counts -= earlier.counts;
    difference.bases -= earlier.bases;
    return difference;
  }
};

}  // namespace thinwire::moe
