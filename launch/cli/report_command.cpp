// `thinwire report`: logs and timelines of training runs as one page.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "thinwire/common/error.h"
#include "thinwire/common/printable.h"
#include "thinwire/compressors/allocation/plan_file.h"
#include "thinwire/launch/cli/commands.h"
#include "thinwire/launch/report/page.h"

namespace thinwire::launch {
namespace {

struct Options {
  std::vector<std::string> files;
  std::string output;
};

bool is_timeline(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && text[first] == '[';
}

void run(const Options& options) {
  std::vector<RunLog> runs;
  std::vector<TraceStep> traces;
  for (const std::string& file : options.files) {
    const std::string text = lgreco::read_text_file(file);
    if (is_timeline(text)) {
      traces.push_back(parse_trace(text, file));
    } else {
      runs.push_back(parse_run_log(text, file));
    }
  }
  lgreco::write_text_file(options.output, report_page(runs, traces));
  std::cout << printable(options.output) << ": " << runs.size()
            << (runs.size() == 1 ? " run, " : " runs, ") << traces.size()
            << (traces.size() == 1 ? " timeline\n" : " timelines\n");
}

}  // namespace

void add_report_command(CLI::App& app) {
  auto* command = app.add_subcommand(
      "report", "Draw logs and timelines of training runs as one page that needs no network");
  command->footer(
      "Logs are what training examples write with --log, timelines what they write with\n"
      "--timeline. docs/report.md describes the charts.");
  const auto options = std::make_shared<Options>();
  command->add_option("files", options->files, "Logs (JSON lines) and timelines (Chrome's traces)")
      ->required()
      ->type_name("FILE...");
  command->add_option("-o,--output", options->output, "The page to write")
      ->required()
      ->type_name("FILE");
  command->callback([options] { run(*options); });
}

}  // namespace thinwire::launch
