// The commands of the `thinwire` program. Each is one file, <name>_command.cpp, whose
// function below adds a subcommand with its options and its callback. An error is thrown from the
// callback: main() prints its one line and exits with 1.
#pragma once

#include "thinwire/launch/cli/bench/command.h"

namespace CLI {
class App;
}

namespace thinwire::launch {

void add_advise_command(CLI::App& app);
void add_codecs_command(CLI::App& app);
void add_doctor_command(CLI::App& app);
void add_peft_command(CLI::App& app);
void add_plan_command(CLI::App& app);
void add_replay_command(CLI::App& app);
void add_report_command(CLI::App& app);
void add_simulate_command(CLI::App& app);
void add_store_command(CLI::App& app);

}  // namespace thinwire::launch
