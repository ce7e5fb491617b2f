// The arithmetic of PTX, one instruction at a time.
#pragma once

#include <array>
#include <cstdint>

#include "thinwire/tests/support/ptx/program.h"

namespace thinwire::testing::ptx {

// The lowest bits of a value.
constexpr std::uint64_t low_bits(std::uint64_t value, int bits) {
  return bits >= 64 ? value : value & ((std::uint64_t{1} << bits) - 1);
}
constexpr std::int64_t sign_extended(std::uint64_t value, int bits) {
  if (bits >= 64) return static_cast<std::int64_t>(value);
  return static_cast<std::int64_t>(value << (64 - bits)) >> (64 - bits);
}

// The result of an instruction of one result, of its sources' bits, as PTX's manual has it. Throws
// std::domain_error for a division by zero and for what is no operation on the type.
std::uint64_t result_of(const Instruction& instruction, const std::array<std::uint64_t, 4>& values);

}  // namespace thinwire::testing::ptx
