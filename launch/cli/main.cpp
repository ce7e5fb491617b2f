// The `thinwire` program. Exit codes: 0 success, 1 an error, 2 a wrong command line.
#include <CLI/CLI.hpp>
#include <exception>
#include <iostream>
#include <string>

#include "thinwire/common/error.h"
#include "thinwire/common/printable.h"
#include "thinwire/common/spec.h"
#include "thinwire/launch/cli/commands.h"

namespace thinwire::launch {
namespace {

constexpr int kError = 1;
constexpr int kUsage = 2;

int complain(std::string message, int code) {
  for (char& c : message) c = c == '\n' ? ' ' : c;
  std::cerr << "thinwire: " << printable(message) << "\n";
  return code;
}

// CLI11's own message for a misspelled command only says that something was not expected. Returns
// "" for a known one.
std::string unknown_command(const CLI::App& app, const std::string& word) {
  std::vector<std::string> known;
  std::string list;
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->get_name() == word) return "";
    known.push_back(command->get_name());
    list += (list.empty() ? "" : ", ") + command->get_name();
  }
  const std::string near = nearest_name(word, known);
  return concat("unknown command '", word, "', known are ", list,
                near.empty() ? "" : concat("; did you mean ", near, "?"));
}

int run(int argc, char** argv) {
  CLI::App app("Distributed training that sends less.", "thinwire");
  app.set_version_flag("--version", "thinwire " THINWIRE_VERSION, "Print the version and exit");
  app.set_help_flag("-h,--help", "Print this text and exit");
  app.require_subcommand(1);
  app.footer(
      "Each command has its own --help. Environment variables: see `thinwire doctor`.\n"
      "Exit code: 0 success, 1 an error, 2 a wrong command line.");
  add_doctor_command(app);
  add_codecs_command(app);
  add_link_command(app);
  add_bench_command(app);
  add_peft_command(app);
  add_plan_command(app);
  add_replay_command(app);
  add_report_command(app);
  add_advise_command(app);
  add_simulate_command(app);
  add_store_command(app);

  if (argc > 1 && argv[1][0] != '-') {
    const std::string unknown = unknown_command(app, argv[1]);
    if (!unknown.empty()) return complain(unknown, kUsage);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help or --version
    return complain(concat(error.what(), "; see `thinwire --help`"), kUsage);
  } catch (const std::exception& error) {
    return complain(error.what(), kError);
  }
  std::cout.flush();
  return std::cout ? 0 : complain("cannot write to standard output", kError);
}

}  // namespace
}  // namespace thinwire::launch

int main(int argc, char** argv) {
  return thinwire::launch::run(argc, argv);
}
