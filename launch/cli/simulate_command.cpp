// `thinwire simulate`: what a step, and all else that grows with the job, costs on many ranks.
#include <CLI/CLI.hpp>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "thinwire/comm/average/plan.h"
#include "thinwire/comm/average/selector.h"
#include "thinwire/comm/link/link_probe.h"
#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/error.h"
#include "thinwire/common/printable.h"
#include "thinwire/common/table.h"
#include "thinwire/compressors/allocation/plan_file.h"
#include "thinwire/launch/advise/advice.h"
#include "thinwire/launch/advise/job_options.h"
#include "thinwire/launch/cli/bench/report.h"
#include "thinwire/launch/cli/commands.h"

namespace thinwire::launch {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kAssumptions =
    "Assumed: all ranks alike but for the straggler; hosts of equally many ranks, which share its\n"
    "link; no congestion between the hosts, no lost packets; strategies as without a link model.\n"
    "An all_reduce of a ring takes 2 (W - 1) latencies, of a tree 2 log2 W, an all_gather half of\n"
    "that, an all_to_all one and 5 us for each further message. Computing varies by --jitter from\n"
    "rank to rank and step to step (normally): the slowest of W is sqrt(2 ln W) deviations "
    "behind.\n"
    "Memory: what compression adds to weights, gradients and optimiser. Control: the bytes of a "
    "step\n"
    "that are no gradients. Start-up: what the store sends to all ranks together, and the\n"
    "sockets of a rank where the backend connects each to each, as Gloo does for two groups.\n";

struct Options : JobOptions {
  std::string log, setting;
  std::vector<int> ranks = {8, 64, 512, 1000, 10000};
  double jitter = 0;
  bool json = false;
};

// Bytes and counts that grow with the world.
struct ScaleCosts {
  double memory = 0;   // bytes of a rank
  double control = 0;  // bytes of a rank and step
  double store = 0;    // bytes that the store answers at start-up, all ranks together
  double sockets = 0;  // of a rank
};

ScaleCosts scale_costs(const RunLog& log, const std::string& text, int world) {
  // What a rank sends in the agreement of a step, and each other one as the size that goes before a
  // frame of unequal length.
  constexpr double kAgreement = 2 * sizeof(std::int64_t), kSize = sizeof(std::int64_t);
  // Fitted to 2 to 256 ranks: each enrols and meets the others a few times by small keys, and reads
  // once who all of them are.
  constexpr double kOfARank = 3500, kOfAPair = 18;
  constexpr double kGroups = 2;
  const comm::LayerSetting setting = comm::parse_layer_setting(text);
  const double others = world - 1;
  ScaleCosts costs{.store = (kOfARank + kOfAPair * world) * world, .sockets = kGroups * others};
  double compressed = 0;
  comm::CodecUse all;
  for (const LoggedLayer& layer : log.layers.back().layers) {
    std::int64_t numel = 1;
    for (const std::int64_t size : layer.shape) numel *= size;
    if (!setting.codec || layer.shape.size() < 2 || numel < log.min_numel) continue;
    compressed += 4.0 * static_cast<double>(numel);
    all.add_layers(comm::use_of(*setting.codec, numel, DType::kFloat32, layer.shape));
  }
  if (!setting.codec) return costs;
  const auto buckets = static_cast<double>(log.profile->buckets.size());
  const auto payload = static_cast<double>(all.payload_bytes);
  // Of a bucket of equal parts of the model, those that own anything get a frame from every other
  // rank and send it one.
  all.blocks = static_cast<std::int64_t>(std::ceil(static_cast<double>(all.blocks) / buckets));
  const double owners = all.owners(world);
  const double sizes = setting.codec->traits().fixed_size ? 0 : others * kSize;
  costs.control = kAgreement + buckets * (2 * owners * others / world * kFrameHeaderBytes + sizes);
  if (setting.uses_feedback()) costs.memory += compressed;
  if (setting.uses_second_residual()) costs.memory += compressed / world;
  // Messages of one step, there and back, and the headers of W frames.
  costs.memory += 4 * payload + 4 * owners * static_cast<double>(kFrameHeaderBytes) * buckets;
  const comm::CodecUse use = comm::use_of(*setting.codec, 1 << 20, DType::kFloat32, {});
  if (comm::usual_strategy(use, world, kFrameHeaderBytes) == comm::Strategy::kGatherReduce) {
    costs.memory += world * payload;
  }
  return costs;
}

void run(const Options& options) {
  const RunLog log = parse_run_log(lgreco::read_text_file(options.log), options.log);
  const std::string setting = !options.setting.empty()   ? options.setting
                              : !log.compression.empty() ? log.compression
                                                         : "none";
  const int local = std::max(1, log.local_size);
  Json rows = Json::array();
  Table table({0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  table.add({"ranks", "hosts", "none (ms)", "step (ms)", "not hidden (ms)", "sent (MB)",
             "control (kB)", "memory (MB)", "store (MB)", "sockets"});
  for (const int world : options.ranks) {
    AdvisedJob job = options.job();
    job.world = world;
    if (job.hosts == 0) job.hosts = std::max(1, world / local);
    check(world % job.hosts == 0, world, " ranks do not fill ", job.hosts, " hosts evenly");
    if (world > 1) job.straggler += options.jitter * std::sqrt(2 * std::log(world));
    Advisor advisor(log, job, [](const Codec& codec) { return comm::time_codec(codec); });
    const comm::StepPrediction step = advisor.predict(setting);
    const comm::StepPrediction none = advisor.predict("none");
    const ScaleCosts costs = scale_costs(log, setting, world);
    table.add({std::to_string(world), std::to_string(job.hosts), printed("%.2f", 1e3 * none.step),
               printed("%.2f", 1e3 * step.step), printed("%.2f", 1e3 * step.exposed),
               printed("%.3f", step.sent_bytes / 1e6), printed("%.2f", costs.control / 1e3),
               printed("%.2f", costs.memory / 1e6), printed("%.2f", costs.store / 1e6),
               printed("%.0f", costs.sockets)});
    rows.push_back({{"world", world},
                    {"hosts", job.hosts},
                    {"uncompressed_step_seconds", none.step},
                    {"step_seconds", step.step},
                    {"exposed_seconds", step.exposed},
                    {"sent_bytes", step.sent_bytes},
                    {"control_bytes", costs.control},
                    {"memory_bytes", costs.memory},
                    {"store_bytes", costs.store},
                    {"sockets", costs.sockets}});
  }
  if (options.json) {
    const Json document = {{"log", options.log}, {"setting", setting}, {"rows", rows}};
    std::cout << document.dump(2, ' ', true, Json::error_handler_t::replace) << "\n";
    return;
  }
  std::cout << printable(setting) << ", " << local << (local == 1 ? " rank" : " ranks")
            << " a host, " << (options.route == "tree" ? "trees" : "rings") << "\n\n";
  table.print(std::cout);
  std::cout << "\n" << kAssumptions;
}

}  // namespace

void add_simulate_command(CLI::App& app) {
  auto* command = app.add_subcommand(
      "simulate", "Carry the model of a step to up to 10,000 ranks, from the log of a short run");
  const auto options = std::make_shared<Options>();
  command->add_option("log", options->log, "The log, with --profile")->required()->type_name("LOG");
  command->add_option("--ranks", options->ranks, "Numbers of ranks")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->type_name("N[,N...]");
  command->add_option("--setting", options->setting, "Compression (default: the log's)")
      ->type_name("SPEC");
  command
      ->add_option("--jitter", options->jitter,
                   "Standard deviation of a rank's computing, as a part of it")
      ->check(CLI::Range(0.0, 10.0));
  add_job_options(*command, *options);
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([options] { run(*options); });
}

}  // namespace thinwire::launch
