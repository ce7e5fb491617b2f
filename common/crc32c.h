// CRC-32C (Castagnoli), the checksum of frames and files. Reflected polynomial 0x82F63B78, initial
// value and final xor 0xFFFFFFFF, so crc32c("123456789") = 0xE3069283.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace thinwire {

// Checksum of `bytes`; pass the result for the bytes before them as `previous` to go on.
// Uses the processor's CRC instruction where there is one, and carry-less products of whole vectors
// where there are these. Thread-safe.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t previous = 0);

namespace detail {
// The implementations, equal on every input; crc32c_hardware only where crc32c_has_hardware(), and
// crc32c_folding where crc32c_has_folding().
using Crc32c = std::uint32_t (*)(std::span<const std::byte> bytes, std::uint32_t previous);
std::uint32_t crc32c_table(std::span<const std::byte> bytes, std::uint32_t previous);
std::uint32_t crc32c_hardware(std::span<const std::byte> bytes, std::uint32_t previous);
std::uint32_t crc32c_folding(std::span<const std::byte> bytes, std::uint32_t previous);
bool crc32c_has_hardware();
bool crc32c_has_folding();
// The fastest one here.
Crc32c crc32c_chosen();
}  // namespace detail

}  // namespace thinwire
