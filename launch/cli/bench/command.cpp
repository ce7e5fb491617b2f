// `thinwire bench`: the speed of codecs and of compressed collectives, as nccl-tests measures.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "thinwire/comm/average/plan.h"
#include "thinwire/comm/average/selector.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/launch/cli/bench/command.h"
#include "thinwire/launch/cli/bench/commands.h"

namespace thinwire::launch {
namespace {

enum class What { kCodec, kAllReduce, kAllToAll };

// What the table cannot say in its columns.
void explain(What what, const BenchGroup& group, const BenchOptions& options, BenchTable& table) {
  const World& world = group.world();
  table.note(concat("thinwire " THINWIRE_VERSION ", ", world.size(),
                    world.size() == 1 ? " rank on " : " ranks on ", group.hosts(),
                    group.hosts() == 1 ? " host" : " hosts", ", backend ", world.backend(), ", ",
                    options.iterations, " timed runs after ", options.warmup,
                    "; a run's time is its slowest rank's, the table has the median"));
  table.note("size: bytes of the uncompressed tensor on one rank; wire: bytes that one rank sends");
  for (const Spec& spec : options.codecs) {
    if (spec.name != "powersgd" || !options.data.empty() || what == What::kAllToAll) continue;
    const std::int64_t side = square_side(options.sizes().front() / 4);
    table.note(concat("powersgd takes the tensor as the squarest matrix, ", options.sizes().front(),
                      " bytes as ", side, " x ", side));
    break;
  }
  if (what == What::kAllToAll) {
    table.note("rows of 1024 elements, equally many from every rank to every rank");
  }
}

void run(What what, const BenchOptions& options) {
  // Complain before a job is joined.
  options.sizes();
  for (const Spec& spec : options.codecs) {
    if (what == What::kAllReduce) {
      comm::parse_layer_setting(spec.str());
    } else {
      make_codec(spec);
    }
  }
  if (options.strategy != "default" && options.strategy != "auto") {
    comm::parse_strategy(options.strategy);
  }
  const BenchGroup group(options.backend, options.json);
  std::vector<std::string> specs;
  for (const Spec& spec : options.codecs) specs.push_back(spec.str());
  BenchTable table(std::cout, specs);
  if (group.first()) explain(what, group, options, table);
  nlohmann::ordered_json context = group.context(options);
  std::vector<BenchRow> rows;
  switch (what) {
    case What::kCodec:
      rows = bench_codec(group, options, table);
      break;
    case What::kAllReduce:
      rows = bench_all_reduce(group, options, table, context);
      break;
    case What::kAllToAll:
      rows = bench_all_to_all(group, options, table);
      break;
  }
  group.finish(options, context, rows);
}

CLI::App* add(CLI::App& bench, What what, const char* name, const char* description,
              const std::shared_ptr<BenchOptions>& options) {
  auto* command = bench.add_subcommand(name, description);
  add_bench_flags(*command, *options);
  command->callback([what, options] { run(what, *options); });
  return command;
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto* bench = app.add_subcommand(
      "bench", "Measure codecs and compressed collectives (alone, under mpirun or torchrun)");
  bench->require_subcommand(1);
  bench->footer(
      "Flags are those of nccl-tests; sizes take K, M or G. docs/benchmarks.md describes the "
      "table\n"
      "and the JSON. Every row's result is checked; exit code 1 if one is wrong.");
  const auto options = std::make_shared<BenchOptions>();
  add(*bench, What::kCodec, "codec", "Encoding and decoding, without a network", options);
  auto* all_reduce = add(*bench, What::kAllReduce, "all_reduce",
                         "Averaging a tensor, as training averages gradients", options);
  add_group_flags(*all_reduce, *options);
  all_reduce
      ->add_option("--strategy", options->strategy,
                   "How compressed rows are averaged: default (by the codec's traits), auto (by a "
                   "link model; may not compress), or a name: dense, scatter_reduce, "
                   "gather_reduce, sparse, low_rank, hierarchical")
      ->type_name("NAME");
  all_reduce
      ->add_option("--link", options->link,
                   "Link model for auto, from `thinwire link`; without one it is measured first")
      ->type_name("FILE");
  all_reduce
      ->add_option("--data", options->data,
                   "Recorded gradients, as of --record-gradients FILE, in place of made numbers; "
                   "each run brings the next recorded step")
      ->type_name("FILE");
  auto* all_to_all = add(*bench, What::kAllToAll, "all_to_all",
                         "Exchanging rows, as tokens travel to their experts", options);
  add_group_flags(*all_to_all, *options);
}

}  // namespace thinwire::launch
