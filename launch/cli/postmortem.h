// `thinwire doctor --postmortem`: what the ranks of a failed job left, in words.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace thinwire::launch {

// Files that ranks of one job left (comm/failure/operation_record.h), or folders of them. Lines of
// text: who is missing, who waited in what since when and why it gave up, and what that means.
// Throws FileError for what is no such file, InvalidArgument for files of different jobs.
std::string postmortem(const std::vector<std::filesystem::path>& files);

}  // namespace thinwire::launch
