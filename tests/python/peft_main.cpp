// `thinwire peft` alone, without torch: it starts at once, and the tests start it often. The
// command is the program's own source; arguments and exit codes are those of `thinwire`.
#include <CLI/CLI.hpp>
#include <iostream>

#include "thinwire/launch/cli/commands.h"

int main(int argc, char** argv) {
  CLI::App app("", "thinwire");
  thinwire::launch::add_peft_command(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::exception& error) {
    std::cerr << "thinwire: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
