#include "thinwire/examples/support/language_trainer.h"

#include <torch/optim/adamw.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <numbers>
#include <optional>

#include "thinwire/comm/state/named_tensors.h"
#include "thinwire/common/error.h"
#include "thinwire/common/median.h"
#include "thinwire/common/metrics.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/examples/support/resumable.h"
#include "thinwire/examples/support/run_settings.h"
#include "thinwire/moe/layer/telemetry.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire::examples {
namespace {

// Linear warm-up over a tenth of the steps (at most 100), then a cosine down to a tenth.
double learning_rate(const LanguageTrainingOptions& options, int step) {
  const int warmup = std::clamp(options.steps / 10, 1, 100);
  if (step < warmup) return options.learning_rate * (step + 1) / warmup;
  const double done = static_cast<double>(step - warmup) / std::max(1, options.steps - warmup);
  return options.learning_rate * (0.1 + 0.45 * (1 + std::cos(std::numbers::pi * done)));
}

struct Evaluation {
  double bits = 0;
  double accuracy = 0;
};

// Every rank makes the same number of passes: they are collective.
Evaluation evaluate(MoELanguageModel& model, const torch::Tensor& text, launch::World& world,
                    const LanguageTrainingOptions& options) {
  const torch::NoGradGuard no_grad;
  model.eval();
  const std::int64_t per_pass = options.tokens / options.context;
  const std::int64_t passes =
      std::max<std::int64_t>(1, options.validation_tokens / (options.tokens * world.size()));
  torch::Tensor sums = torch::zeros({3}, torch::kDouble);  // loss, correct, tokens
  for (std::int64_t pass = 0; pass < passes; ++pass) {
    const TextBatch batch =
        slice_batch(text, per_pass, options.context, pass * per_pass * world.size() + world.rank(),
                    world.size());
    const torch::Tensor logits = model.forward(batch.input).first.flatten(0, 1);
    const torch::Tensor target = batch.target.flatten();
    sums[0] += torch::cross_entropy_loss(logits, target, {}, at::Reduction::Sum).to(torch::kDouble);
    sums[1] += logits.argmax(1).eq(target).sum().to(torch::kDouble);
    sums[2] += static_cast<double>(target.numel());
  }
  model.train();
  const double loss = world.all_reduce(sums[0].item<double>());
  const double correct = world.all_reduce(sums[1].item<double>());
  const double tokens = world.all_reduce(sums[2].item<double>());
  return {loss / tokens / std::numbers::ln2, correct / tokens};
}

// So that a path that cannot be written is known before the training, not after it.
void check_weights_path(const std::filesystem::path& file) {
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
  if (std::filesystem::is_directory(file) || ::access(folder.c_str(), W_OK) != 0) {
    throw FileError(concat("cannot write weights to ", file.string()));
  }
}

NamedTensors load_weights(const std::filesystem::path& file) {
  try {
    return load_tensors(file);
  } catch (const FileError& error) {
    throw FileError(concat("--load: no weights that --save wrote: ", error.what()));
  }
}

// What a checkpoint's training and this one must have in common.
std::string settings_text(const LanguageTrainingOptions& options) {
  return concat("--compression=", compression_text(options.compression), "\n--seed=", options.seed,
                "\n--dedup=", options.dedup, "\n--rows=", options.rows, "\n--steps=", options.steps,
                "\n--layers=", options.layers, "\n--dim=", options.dim, "\n--heads=", options.heads,
                "\n--hidden=", options.hidden, "\n--experts=", options.experts,
                "\n--top-k=", options.top_k, "\n--capacity=", options.capacity_factor,
                "\n--context=", options.context, "\n--tokens=", options.tokens,
                "\n--lr=", options.learning_rate, "\n");
}

void log_result(MetricsLog& log, const LanguageResult& result,
                const LanguageTrainingOptions& options) {
  MetricFields fields = {{"backend", result.backend},
                         {"compression", result.compression},
                         {"world_size", std::int64_t{result.world_size}},
                         {"model", std::string("moe_lm")},
                         {"epochs", result.epochs},
                         {"test_accuracy", result.validation_accuracy},
                         {"train_seconds", result.train_seconds},
                         {"wire_bytes_per_step", result.wire_bytes_per_step()},
                         {"dense_bytes_per_step", result.dense_bytes_per_step()},
                         {"parameters_crc32c", std::int64_t{result.parameters_crc32c}},
                         {"replicas_equal", result.replicas_equal},
                         {"dedup", options.dedup},
                         {"rows", options.rows},
                         {"steps", result.steps},
                         {"validation_bpc", result.validation_bpc},
                         {"step_seconds", result.step_seconds}};
  for (auto& field : moe::metric_fields(result.experts)) fields.push_back(std::move(field));
  log.write("result", fields);
}

}  // namespace

double LanguageResult::wire_bytes_per_step() const {
  return gradients.wire_bytes_per_step() +
         static_cast<double>(experts.wire.total()) /
             static_cast<double>(std::max<std::int64_t>(1, steps));
}

double LanguageResult::dense_bytes_per_step() const {
  return gradients.dense_bytes_per_step() +
         static_cast<double>(experts.uncompressed_bytes) /
             static_cast<double>(std::max<std::int64_t>(1, steps));
}

LanguageResult train_language_model(launch::World& world, const TextCorpus& text,
                                    const LanguageTrainingOptions& options) {
  at::set_num_threads(threads_of_rank(world, options.threads));
  torch::manual_seed(options.seed);
  const auto model = std::make_shared<MoELanguageModel>(model_options(options), world.group());
  if (!options.load.empty()) model->load_state(load_weights(options.load));
  const CompressionOptions compression = compression_of(options);
  const std::unique_ptr<Timeline> timeline = make_timeline(world, options);
  DistributedDataParallel ddp(model, world.group(),
                              {.compression = compression, .timeline = timeline.get()});
  torch::optim::AdamW optimizer(
      model->parameters(), torch::optim::AdamWOptions(options.learning_rate).betas({0.9, 0.95}));

  const bool leader = world.rank() == 0;
  std::optional<MetricsLog> log;
  if (leader && !options.log.empty()) log.emplace(options.log);
  if (leader && !options.save.empty()) check_weights_path(options.save);
  LanguageResult result{.backend = world.backend(),
                        .compression = compression_text(options.compression),
                        .world_size = world.size()};
  const std::int64_t sequences = options.tokens / options.context;
  std::vector<double> all_steps, recent;
  double loss_sum = 0;
  Evaluation evaluation;
  moe::MoESummary reported;
  Resumable resumable(world, options, settings_text(options));
  resumable.add("model",
                Checkpoint::Part{[&] { return model->local_state(); },
                                 [&](const NamedTensors& saved) { model->load_state(saved); }});
  resumable.add("optimizer", optimizer, [&] { return model->weights(); });
  resumable.add("gradients", ddp);
  resumable.add_own_number("seconds", result.train_seconds);
  resumable.add_number("bits", evaluation.bits);
  resumable.add_number("accuracy", evaluation.accuracy);
  for (int step = static_cast<int>(resumable.load()); step < options.steps; ++step) {
    resumable.begin_step();
    const auto begin = Clock::now();
    const TextBatch batch =
        sample_batch(text.train, sequences, options.context, options.seed,
                     static_cast<std::uint64_t>(step), world.rank() * sequences);
    for (auto& group : optimizer.param_groups())
      group.options().set_lr(learning_rate(options, step));
    ddp.zero_grad();
    const auto [logits, auxiliary] = ddp.forward(batch.input);
    const torch::Tensor loss =
        torch::cross_entropy_loss(logits.flatten(0, 1), batch.target.flatten());
    (loss + auxiliary).backward();
    optimizer.step();
    const double bits = loss.item<double>() / std::numbers::ln2;
    check(std::isfinite(bits), "the loss of step ", step + 1, " is not finite; --lr ",
          options.learning_rate, " may be too high");
    all_steps.push_back(seconds_since(begin));
    recent.push_back(all_steps.back());
    result.train_seconds += all_steps.back();
    loss_sum += bits;

    const int done = step + 1;
    const bool last = done == options.steps;
    if (done % options.log_every == 0 || last) {
      const moe::MoESummary total = model->summary();
      const double rows = static_cast<double>(total.rows - reported.rows);
      const double kept = static_cast<double>((total.merged_rows - total.shared_rows) -
                                              (reported.merged_rows - reported.shared_rows));
      const double fraction = rows > 0 ? kept / rows : 1;
      const double bytes = static_cast<double>((total.wire - reported.wire).total()) /
                           static_cast<double>(recent.size());
      const double mean_bits = loss_sum / static_cast<double>(recent.size());
      if (leader) {
        std::printf("step %d/%d  %.4f bits  %.1f ms  rows %.1f %%  expert rows %.3f MB\n", done,
                    options.steps, mean_bits, 1e3 * median(recent), 100 * fraction, bytes / 1e6);
        std::fflush(stdout);
      }
      if (log) {
        log->write("step", {{"step", std::int64_t{done}},
                            {"train_bpc", mean_bits},
                            {"step_seconds", median(recent)},
                            {"moe_rows_fraction", fraction},
                            {"moe_wire_bytes_per_step", bytes},
                            {"moe_refused_passes", total.refused_passes},
                            {"moe_worst_radius", total.worst_radius}});
      }
      reported = total;
      recent.clear();
      loss_sum = 0;
    }
    if (last || (options.evaluate_every > 0 && done % options.evaluate_every == 0)) {
      evaluation = evaluate(*model, text.validation, world, options);
      if (leader) std::printf("validation  %.4f bits per character\n", evaluation.bits);
      if (log) {
        log->write("evaluation", {{"step", std::int64_t{done}},
                                  {"validation_bpc", evaluation.bits},
                                  {"train_seconds", result.train_seconds}});
      }
    }
    resumable.end_step(done, last);
  }
  result.steps = options.steps;
  result.epochs = options.steps * options.tokens * world.size() / text.train.numel();
  result.validation_bpc = evaluation.bits;
  result.validation_accuracy = evaluation.accuracy;
  result.step_seconds = median(all_steps);
  result.gradients = ddp.summary();
  result.experts = model->summary();
  result.parameters_crc32c = ddp.parameters_crc32c();
  result.replicas_equal = ddp.replicas_equal();
  if (log) log_result(*log, result, options);
  if (!options.save.empty()) {
    const NamedTensors state = model->full_state();
    if (leader) save_tensors(state, options.save);
  }
  return result;
}

void print_summary(const LanguageResult& result) {
  const CommunicationSummary& gradients = result.gradients;
  std::cout << concat(
      "\ncommunication summary of one rank (", result.world_size, " ranks over ", result.backend,
      ")\n  validation        ", result.validation_bpc, " bits per character after ", result.steps,
      " steps, ", 1e3 * result.step_seconds, " ms a step\n  sent              ",
      result.wire_bytes_per_step() / 1e6, " MB a step, ", result.dense_bytes_per_step() / 1e6,
      " MB uncompressed\n  gradients         ", gradients.wire_bytes_per_step() / 1e6,
      " MB a step, compression ", result.compression, "\n",
      moe::describe(result.experts, result.steps), "  parameters        CRC-32C ",
      result.parameters_crc32c, ", ",
      result.replicas_equal ? "bit-equal on all ranks" : "DIFFERENT between ranks", "\n");
}

}  // namespace thinwire::examples
