// `thinwire plan`: L-GreCo's allocation from a file of curves, and plans in the terminal.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "thinwire/comm/link/link_model.h"
#include "thinwire/common/error.h"
#include "thinwire/common/printable.h"
#include "thinwire/compressors/allocation/plan_file.h"
#include "thinwire/compressors/allocation/plan_table.h"
#include "thinwire/launch/cli/commands.h"
#include "thinwire/torch_ext/adaptive/candidate_costs.h"

namespace thinwire::launch {
namespace {

struct Options {
  std::string curves, show, link, backend, output;
  std::string constraint = "error", objective = "bytes";
  double budget = 1;
  double cap = 0.95;
};

const comm::BackendLink& backend_of(const comm::LinkModel& model, const Options& options) {
  if (!options.backend.empty()) return model.backend(options.backend);
  if (model.backends.size() == 1) return model.backends.begin()->second;
  std::string list;
  for (const auto& [name, ignored] : model.backends) list += (list.empty() ? "" : ", ") + name;
  throw InvalidArgument(concat(options.link, " has ",
                               model.backends.empty() ? "no backend" : "the backends " + list,
                               "; choose one with --backend"));
}

// Adds the time on the wire to the time of coding: the curves' own, else the link model's.
void predict_seconds(lgreco::CurveFile& file, const Options& options) {
  const comm::LinkModel model = comm::read_link_model(options.link);
  const comm::BackendLink& link = backend_of(model, options);
  for (std::size_t l = 0; l < file.layers.size(); ++l) {
    lgreco::Layer& layer = file.layers[l];
    for (std::size_t c = 0; c < layer.candidates.size(); ++c) {
      lgreco::Candidate& candidate = layer.candidates[c];
      const Spec spec = Spec::parse(candidate.spec);
      if (!file.timed[l][c]) {
        try {
          candidate.seconds =
              coding_seconds(spec, layer.numel, codec_cost(spec, model), model.world);
        } catch (const InvalidArgument& error) {
          throw InvalidArgument(
              concat(options.curves, ": layers[", l, "].candidates[", c,
                     "] has no seconds, and its spec is no codec: ", error.what()));
        }
      }
      candidate.seconds += wire_seconds(candidate.bytes, link);
    }
  }
}

void solve(const Options& options) {
  check(options.link.empty() || options.objective == "time", "--link ", options.link,
        " is for --objective time, got --objective ", options.objective);
  lgreco::CurveFile file = lgreco::read_curves(options.curves);
  lgreco::AllocationOptions allocation;
  allocation.budget = options.budget;
  if (options.constraint == "bytes") allocation.constraint = lgreco::Constraint::kBytes;
  // In the measure of the file, whose name it does not tell: the plain norm, as the paper's.
  allocation.max_relative_error = options.cap;
  if (options.objective == "time") {
    allocation.objective = lgreco::Objective::kTime;
    if (!options.link.empty()) {
      predict_seconds(file, options);
    } else if (!file.has_seconds()) {
      throw InvalidArgument(concat(options.curves, ": ", file.first_without_seconds,
                                   " is missing; --objective time needs it, or --link with a file "
                                   "that `thinwire link` wrote"));
    }
  }
  const lgreco::SolvedPlan plan =
      lgreco::make_plan(file.layers, allocation, lgreco::allocate(file.layers, allocation));
  for (const std::string& warning : plan.warnings)
    std::cerr << "thinwire: " << printable(warning) << "\n";
  if (options.output.empty()) {
    std::cout << lgreco::plan_text(plan);
  } else {
    lgreco::write_text_file(options.output, lgreco::plan_text(plan));
    std::cout << lgreco::plan_summary(plan) << "\n";
  }
}

void show(const Options& options) {
  const lgreco::SolvedPlan plan = lgreco::read_plan(options.show);
  std::cout << lgreco::plan_table(plan) << "\n" << lgreco::plan_summary(plan) << "\n";
}

}  // namespace

void add_plan_command(CLI::App& app) {
  auto* command = app.add_subcommand(
      "plan", "Choose a codec for every layer from measured curves (L-GreCo), or show a plan");
  const auto options = std::make_shared<Options>();
  auto* input = command->add_option_group("Input", "One of");
  input->add_option("--curves", options->curves,
                    "JSON file with each layer's candidates: spec, bytes, error and, "
                    "if need be, seconds");
  auto* shown = input->add_option("--show", options->show, "Print the table of this plan");
  input->require_option(1);
  const auto only_for_curves = [&](CLI::Option* option) { option->excludes(shown); };
  only_for_curves(command
                      ->add_option("--budget", options->budget,
                                   "Factor on the reference's total of what is constrained")
                      ->check(CLI::PositiveNumber)
                      ->capture_default_str());
  only_for_curves(command
                      ->add_option("--constraint", options->constraint,
                                   "error: least size at the reference's error; bytes: least error "
                                   "at the reference's size")
                      ->check(CLI::IsMember({"error", "bytes"}))
                      ->capture_default_str());
  auto* objective = command
                        ->add_option("--objective", options->objective,
                                     "What size means: bytes or (seconds of) time")
                        ->check(CLI::IsMember({"bytes", "time"}))
                        ->capture_default_str();
  only_for_curves(objective);
  only_for_curves(command
                      ->add_option("--cap", options->cap,
                                   "Most that a candidate may lose, as a part of the layer's norm "
                                   "where the curves give it; 0: anything")
                      ->check(CLI::Range(0.0, 1.0))
                      ->capture_default_str());
  auto* link = command->add_option(
      "--link", options->link,
      "File that `thinwire link` wrote: the time on its wire is added to the curves' seconds, "
      "which it also gives (codec speed) where they are missing");
  link->needs(objective);
  only_for_curves(link);
  command
      ->add_option("--backend", options->backend,
                   "Which of the link file's backends; needed where it has several")
      ->needs(link);
  only_for_curves(
      command->add_option("-o,--output", options->output, "Write the plan to this file"));
  command->callback([options] { options->show.empty() ? solve(*options) : show(*options); });
}

}  // namespace thinwire::launch
