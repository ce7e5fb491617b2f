// Names and numbers of the ComPEFT file, see docs/peft-format.md.
#pragma once

#include <cstddef>

namespace thinwire::peft::detail {

inline constexpr const char* kFormatName = "compeft";
// Files of version 2 may have blocks coded by row and column; others are written as version 1.
inline constexpr const char* kFormatVersion = "1";
inline constexpr const char* kContextsVersion = "2";
// Every tensor of the source may have any name but those with this prefix.
inline constexpr const char* kReservedPrefix = "compeft.";
inline constexpr const char* kDirectoryName = "compeft.directory";
inline constexpr const char* kBlocksName = "compeft.blocks";
inline constexpr const char* kSealName = "compeft.seal";
// Length and CRC-32C of a block.
inline constexpr std::size_t kDirectoryEntryBytes = 8;
// CRC-32C of header and directory, CRC-32C of all bytes before it.
inline constexpr std::size_t kSealBytes = 8;

}  // namespace thinwire::peft::detail
