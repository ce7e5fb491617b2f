// Slurm's short forms for lists of hosts and of numbers of tasks.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace thinwire::launch {

// "node[01-03,7],login" -> node01 node02 node03 node7 login. A range keeps the digits of its first
// number; several brackets in one name give every combination, the last running fastest.
// Throws InvalidArgument, with the text, where it is malformed, empty, or names more than 65536
// hosts.
std::vector<std::string> expand_node_list(std::string_view text);

// "2(x3),1" -> 2 2 2 1. Throws like expand_node_list().
std::vector<int> expand_tasks_per_node(std::string_view text);

}  // namespace thinwire::launch
