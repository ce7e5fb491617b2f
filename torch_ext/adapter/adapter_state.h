// An adapter in memory, as tensors of torch: what a directory of the PEFT library or a packed file
// holds.
#pragma once

#include <filesystem>
#include <string>

#include "thinwire/comm/state/named_tensors.h"
#include "thinwire/compressors/peft/container.h"

namespace thinwire {

struct AdapterState {
  std::string config;    // text of adapter_config.json
  NamedTensors tensors;  // by name in the file, on the CPU
};

// Reads a PEFT directory or a packed file. Throws FileError for what is neither or is damaged,
// InvalidArgument for a packed delta against a base file, which is no adapter.
AdapterState read_adapter(const std::filesystem::path& path);
// What unpacking the file gives.
AdapterState adapter_of(const peft::PackedFile& file);

// Writes a directory that the PEFT library loads. Throws FileError where its files exist and
// `overwrite` is false, InvalidArgument for a dtype that safetensors files do not have.
void write_adapter(const AdapterState& adapter, const std::filesystem::path& directory,
                   bool overwrite);

}  // namespace thinwire
