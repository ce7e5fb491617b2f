// `thinwire advise`: from the log of one short run, what each setting would give.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "thinwire/comm/average/plan.h"
#include "thinwire/comm/link/link_probe.h"
#include "thinwire/common/error.h"
#include "thinwire/common/printable.h"
#include "thinwire/common/spec.h"
#include "thinwire/common/table.h"
#include "thinwire/compressors/allocation/plan_file.h"
#include "thinwire/launch/advise/advice.h"
#include "thinwire/launch/advise/job_options.h"
#include "thinwire/launch/cli/bench/report.h"
#include "thinwire/launch/cli/commands.h"

namespace thinwire::launch {
namespace {

using Json = nlohmann::ordered_json;

struct Options : JobOptions {
  std::string log, settings;
  bool json = false;
};

std::string milliseconds(double seconds) {
  return printed("%.2f", 1e3 * seconds);
}

void run(const Options& options) {
  const RunLog log = parse_run_log(lgreco::read_text_file(options.log), options.log);
  Advisor advisor(log, options.job(), [](const Codec& codec) { return comm::time_codec(codec); });
  std::vector<std::string> settings;
  if (options.settings.empty()) {
    settings = usual_settings(log);
  } else {
    for (const Spec& spec : Spec::parse_list(options.settings)) settings.push_back(spec.str());
  }
  const LoggedProfile& profile = *log.profile;
  const double own = advisor.predict_logged().step;
  const comm::StepPrediction none = advisor.predict("none");
  Json rows = Json::array();
  Table table({1, 2, 3, 4, 5});
  table.add({"setting", "sent (MB)", "step (ms)", "not hidden (ms)", "coding (ms)", "faster"});
  for (const std::string& setting : settings) {
    const comm::StepPrediction step = advisor.predict(setting);
    table.add({setting, printed("%.4f", step.sent_bytes / 1e6), milliseconds(step.step),
               milliseconds(step.exposed), milliseconds(step.coding),
               printed("%.2fx", none.step / step.step)});
    rows.push_back({{"setting", setting},
                    {"sent_bytes", step.sent_bytes},
                    {"step_seconds", step.step},
                    {"exposed_seconds", step.exposed},
                    {"coding_seconds", step.coding},
                    {"network_seconds", step.network},
                    {"faster", none.step / step.step}});
  }
  if (options.json) {
    const Json document = {
        {"log", options.log},
        {"world", advisor.world()},
        {"hosts", advisor.hosts()},
        {"compute_seconds", advisor.compute_seconds()},
        {"logged",
         {{"setting", log.compression}, {"measured", profile.step_seconds}, {"predicted", own}}},
        {"settings", rows}};
    std::cout << document.dump(2, ' ', true, Json::error_handler_t::replace) << "\n";
    return;
  }
  std::cout << "A step on " << advisor.world() << " ranks of " << advisor.hosts() << " hosts, "
            << milliseconds(advisor.compute_seconds()) << " ms of computing\n\n";
  table.print(std::cout);
  std::cout << "\nThe log's own step (" << printable(log.compression) << ", " << log.world_size
            << " ranks): " << milliseconds(profile.step_seconds) << " ms measured, "
            << milliseconds(own) << " ms by this model\n";
}

}  // namespace

void add_advise_command(CLI::App& app) {
  auto* command = app.add_subcommand(
      "advise", "Foretell from the log of one short run what each setting would give");
  command->footer(
      "The log is what a training example wrote with --log and --profile. docs/report.md tells\n"
      "what the model of a step assumes.");
  const auto options = std::make_shared<Options>();
  command->add_option("log", options->log, "The log")->required()->type_name("LOG");
  command->add_option("--setting", options->settings, "Settings to compare, in place of the usual")
      ->type_name("SPEC[;SPEC...]");
  add_job_options(*command, *options);
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([options] { run(*options); });
}

}  // namespace thinwire::launch
