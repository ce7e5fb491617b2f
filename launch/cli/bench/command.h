// The commands that measure, as launch/cli/commands.h has the others.
#pragma once

namespace CLI {
class App;
}

namespace thinwire::launch {

void add_bench_command(CLI::App& app);
void add_link_command(CLI::App& app);

}  // namespace thinwire::launch
