// `thinwire link`: what the network between the ranks of a job costs.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>

#include "thinwire/common/error.h"
#include "thinwire/common/table.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/launch/cli/bench/command.h"
#include "thinwire/launch/cli/bench/group.h"
#include "thinwire/launch/cli/bench/link_measurement.h"
#include "thinwire/launch/cli/bench/report.h"

namespace thinwire::launch {
namespace {

using comm::AlphaBeta;
using comm::LinkModel;

struct Options {
  std::vector<std::string> backends;
  std::string codecs =
      "cast(bf16);quantize(bits=4);quantize(bits=8);topk(density=0.01);powersgd(rank=4);onebit";
  std::string output;
  bool no_pairs = false;
  int repeats = 5;
};

std::string microseconds(const AlphaBeta& cost) {
  return printed("%.1f", cost.alpha * 1e6);
}

// A cost without bandwidth was too fast to measure one.
std::string gigabytes(const AlphaBeta& cost) {
  return cost.beta > 0 ? printed("%.3f", 1e-9 / cost.beta) : "-";
}

void print_pairs(const LinkModel& model, const comm::BackendLink& link, std::ostream& out) {
  Table table({0, 1, 2, 3});
  table.add({"from", "to", "latency (us)", "GB/s"});
  // The first ranks, then what differs most: nobody reads thousands of lines.
  constexpr std::size_t kMost = 64;
  std::size_t shown = 0;
  for (std::size_t from = 0; from < link.pairs.size(); ++from) {
    for (std::size_t to = 0; to < link.pairs.size(); ++to) {
      if (from == to || shown++ >= kMost) continue;
      const AlphaBeta& cost = link.pairs[from][to];
      table.add({std::to_string(from), std::to_string(to), microseconds(cost), gigabytes(cost)});
    }
  }
  table.print(out);
  if (shown > kMost) {
    out << "  ... and " << shown - kMost << " more among " << model.world
        << " ranks; the file has all\n";
  }
}

void print(const LinkModel& model, std::ostream& out) {
  out << model.world << (model.world == 1 ? " rank" : " ranks") << " on " << model.host_count()
      << (model.host_count() == 1 ? " host" : " hosts") << "\n";
  for (const auto& [name, link] : model.backends) {
    out << "\n" << name << "\n";
    Table table({1, 2});
    table.add({"", "latency (us)", "GB/s sent by a rank"});
    for (const comm::Collective collective : comm::kCollectives) {
      table.add({std::string(comm::name_of(collective)), microseconds(link.of(collective)),
                 gigabytes(link.of(collective))});
    }
    table.print(out);
    if (!link.pairs.empty()) print_pairs(model, link, out);
  }
  if (model.codecs.empty()) return;
  out << "\nCodecs, GB/s of float32 on the slowest rank\n";
  Table table({1, 2, 3});
  table.add({"", "compress", "decompress", "accumulate"});
  for (const auto& [spec, cost] : model.codecs) {
    table.add({spec, printed("%.2f", 1e-9 / cost.compress), printed("%.2f", 1e-9 / cost.decompress),
               printed("%.2f", 1e-9 / cost.accumulate)});
  }
  table.print(out);
}

void run(const Options& options) {
  LinkMeasurement measurement;
  measurement.probe.repeats = options.repeats;
  measurement.probe.pairs = !options.no_pairs;
  for (const Spec& spec : Spec::parse_list(options.codecs)) {
    if (spec.name != "none") measurement.codecs.push_back(make_codec(spec));
  }
  const World world = init({.backend = options.backends.front()});
  check(world.size() > 1,
        "a link needs at least two ranks, this job has 1: start it with mpirun -np 2, or with "
        "torchrun --no-python --nproc-per-node 2");
  check_output_file(world, options.output);
  measurement.more_backends.assign(options.backends.begin() + 1, options.backends.end());
  const bool terminal = world.rank() == 0 && ::isatty(STDERR_FILENO) != 0;
  if (terminal) {
    measurement.probe.progress = [](const std::string& what) {
      std::cerr << "\rmeasuring " << what << "\033[K" << std::flush;
    };
  }
  const LinkModel model = measure_link(world, measurement);
  if (terminal) std::cerr << "\r\033[K" << std::flush;
  if (world.rank() != 0) return;
  if (!options.output.empty()) comm::write_link_model(model, options.output);
  print(model, std::cout);
}

}  // namespace

void add_link_command(CLI::App& app) {
  auto* command = app.add_subcommand(
      "link", "Measure latency and bandwidth between the ranks of a job (under mpirun, torchrun)");
  command->footer(
      "Fits seconds = alpha + beta x bytes to every collective and pair of ranks, where bytes are\n"
      "those that one rank sends, and measures codecs. `thinwire bench` and `thinwire plan` read\n"
      "the file; docs/benchmarks.md describes it.");
  const auto options = std::make_shared<Options>();
  options->backends = {"auto"};
  command
      ->add_option("--backend", options->backends,
                   "auto, gloo or mpi; several with commas, as the job allows (default auto)")
      ->delimiter(',')
      ->type_name("NAME[,NAME]");
  command->add_option("-o,--output", options->output, "JSON file, written by rank 0")
      ->type_name("FILE");
  command->add_option("--codec", options->codecs, "Codecs to measure; none: no codec")
      ->capture_default_str()
      ->type_name("SPEC[;SPEC...]");
  command->add_option("--repeats", options->repeats, "Timed calls of every size")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command->add_flag("--no-pairs", options->no_pairs, "Measure the collectives only");
  command->callback([options] { run(*options); });
}

}  // namespace thinwire::launch
