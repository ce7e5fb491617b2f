// c10d has no stable ABI: a build of thinwire serves one minor version of torch.
#pragma once

#include <string>

namespace thinwire::comm {

// Version of torch that thinwire was compiled against, "2.11.0".
std::string compiled_torch_version();
// Version of the torch library that is loaded into this process.
std::string loaded_torch_version();
// Throws InvalidArgument when the two differ in major or minor version.
void check_torch_version();

}  // namespace thinwire::comm
