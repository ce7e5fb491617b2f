// Giving an expert to all ranks of a group.
#pragma once

#include <filesystem>
#include <string>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/torch_ext/adapter/adapter_switch.h"

namespace thinwire {

// Sends rank `root`'s packed file to all ranks of the group, from memory to memory, and puts the
// expert on everywhere or nowhere: every rank checks and stages what it received, then the ranks
// compare checksums and outcomes, and only if all are well do they switch. Returns the expert's id.
//
// Collective; `file` matters on the root alone. Throws InvalidArgument where the ranks name
// different roots, FileError, with one text on every rank that
// names the rank and the reason, where the file cannot be read, differs on arrival or does not fit
// a rank's weights; CommError where a rank is gone. Whatever is thrown, the old expert stays on.
std::string broadcast_expert(AdapterSwitch& target, c10d::ProcessGroup& group, int root,
                             const std::filesystem::path& file);

}  // namespace thinwire
