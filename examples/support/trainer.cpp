#include "thinwire/examples/support/trainer.h"

#include <torch/optim/sgd.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <optional>

#include "thinwire/common/error.h"
#include "thinwire/common/metrics.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/common/timeline.h"
#include "thinwire/compressors/allocation/plan_file.h"
#include "thinwire/examples/support/progress.h"
#include "thinwire/examples/support/resumable.h"
#include "thinwire/examples/support/run_log.h"
#include "thinwire/examples/support/run_settings.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire::examples {
namespace {

ImageSet first_samples(const ImageSet& set, std::int64_t count, torch::Device device) {
  const auto numel = count == 0 ? set.labels.size(0) : std::min(count, set.labels.size(0));
  return {set.images.narrow(0, 0, numel).to(device), set.labels.narrow(0, 0, numel).to(device)};
}

// This rank's images of one epoch, in order: every rank shuffles alike and takes its own stride.
// The images that do not fill a batch on every rank are left out, so that all ranks make the same
// number of steps.
torch::Tensor shard(std::int64_t images, const launch::World& world, std::int64_t batch,
                    std::uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  const auto order = torch::randperm(images, generator, torch::kLong);
  const std::int64_t steps = images / (batch * world.size());
  return order.narrow(0, 0, steps * batch * world.size())
      .view({-1, world.size()})
      .select(1, world.rank())
      .contiguous();
}

struct Evaluation {
  double accuracy = 0;  // 0 to 1
  double loss = 0;      // mean cross entropy, in nats
};

Evaluation evaluate(Classifier& model, const ImageSet& set, launch::World& world) {
  torch::NoGradGuard no_grad;
  model.eval();
  const std::int64_t images = set.labels.size(0);
  const torch::Device device = set.images.device();
  torch::Tensor sums = torch::zeros({2}, torch::TensorOptions(torch::kDouble).device(device));
  for (const auto& indices : share_of_rank(world, images).to(device).split(500)) {
    const auto scores = model.forward(set.images.index_select(0, indices));
    const auto labels = set.labels.index_select(0, indices);
    // Correct images, loss.
    sums[0] += scores.argmax(1).eq(labels).sum();
    sums[1] += torch::cross_entropy_loss(scores, labels, {}, at::Reduction::Sum);
  }
  model.train();
  const auto all = static_cast<double>(images);
  return {world.all_reduce(sums[0].item<double>()) / all,
          world.all_reduce(sums[1].item<double>()) / all};
}

// The learning rate of the step after `done` of `all` steps.
double learning_rate(const TrainingOptions& options, std::int64_t done, std::int64_t all) {
  if (options.schedule == "constant") return options.learning_rate;
  return options.learning_rate * (1 - static_cast<double>(done) / static_cast<double>(all));
}

// What a checkpoint's training and this one must have in common.
std::string settings_text(const TrainingOptions& options) {
  return concat(
      "--model=", options.model, "\n--compression=", compression_text(options.compression),
      "\n--seed=", options.seed, "\n--batch-size=", options.batch_size,
      "\n--lr=", options.learning_rate, "\n--schedule=", options.schedule,
      "\n--momentum=", options.momentum, "\n--warmup-steps=", options.warmup_steps,
      "\n--min-numel=", options.min_numel, "\n--train-samples=", options.train_samples, "\n");
}

// Bytes of one rank and one step, and what adapting the plan cost.
MetricFields traffic_fields(const CommunicationSummary& traffic) {
  const AdaptationSummary& adaptation = traffic.adaptation;
  return {{"sent_bytes", static_cast<std::int64_t>(traffic.total.sent_bytes)},
          {"wire_bytes_per_step", traffic.wire_bytes_per_step()},
          {"dense_bytes_per_step", traffic.dense_bytes_per_step()},
          {"compressed_wire_bytes_per_step", traffic.compressed_wire_bytes_per_step()},
          {"compressed_dense_bytes_per_step", traffic.compressed_dense_bytes_per_step()},
          {"plans", adaptation.plans},
          {"adaptation_bytes", static_cast<std::int64_t>(adaptation.sent_bytes)},
          {"adaptation_seconds", adaptation.seconds()},
          {"adaptation_wait_seconds", adaptation.wait_seconds},
          {"adaptation_share", adaptation.share()}};
}

void log_result(MetricsLog& log, const TrainingResult& result) {
  MetricFields fields = {{"backend", result.backend},
                         {"compression", result.compression},
                         {"world_size", std::int64_t{result.world_size}},
                         {"model", result.model},
                         {"epochs", std::int64_t{result.epochs}},
                         {"test_accuracy", result.test_accuracy},
                         {"train_seconds", result.train_seconds},
                         {"wire_bytes_per_step", result.traffic.wire_bytes_per_step()},
                         {"dense_bytes_per_step", result.traffic.dense_bytes_per_step()},
                         {"parameters_crc32c", std::int64_t{result.parameters_crc32c}},
                         {"replicas_equal", result.replicas_equal}};
  if (const AutomaticSummary& automatic = result.traffic.automatic; !automatic.setting.empty()) {
    fields.emplace_back("setting", automatic.setting);
    fields.emplace_back("reason", automatic.reason);
  }
  log.write("result", fields);
}

}  // namespace

TrainingResult train_classifier(launch::World& world, std::shared_ptr<Classifier> model,
                                const FashionMnist& data, const TrainingOptions& options) {
  at::set_num_threads(threads_of_rank(world, options.threads));
  const torch::Device device = device_of(world, options);
  model->to(device);
  const ImageSet train = first_samples(data.train, options.train_samples, device);
  const ImageSet test = first_samples(data.test, options.test_samples, device);
  const std::int64_t steps_per_epoch =
      train.labels.size(0) / (std::int64_t{options.batch_size} * world.size());
  check(steps_per_epoch > 0, train.labels.size(0), " images do not fill one batch of ",
        options.batch_size, " on each of ", world.size(), " ranks");

  const bool leader = world.rank() == 0;
  const std::unique_ptr<Timeline> timeline = make_timeline(world, options);
  std::optional<MetricsLog> log;
  if (leader && !options.log.empty()) log.emplace(options.log);

  CompressionOptions compression = compression_of(options);
  compression.min_numel = options.min_numel;
  compression.warmup_steps = options.warmup_steps;
  compression.link_model = options.link_model;
  DistributedDataParallel ddp(model, world.group(),
                              {.compression = compression,
                               .bucket_cap_mb = options.bucket_cap_mb,
                               .timeline = timeline.get()});
  torch::optim::SGD optimizer(
      model->parameters(),
      torch::optim::SGDOptions(options.learning_rate).momentum(options.momentum));

  TrainingResult result{.backend = world.backend(),
                        .compression = compression_text(options.compression),
                        .world_size = world.size(),
                        .model = options.model};
  std::optional<comm::LinkModel> link;
  if (options.profile) link = measure_link(world, result.compression);
  if (log) {
    std::int64_t parameters = 0;
    for (const auto& parameter : model->parameters()) parameters += parameter.numel();
    log_start(*log, world,
              {.compression = result.compression,
               .model = options.model,
               .batch_size = options.batch_size,
               .min_numel = options.min_numel,
               .parameters = parameters});
    if (link) log_link(*log, *link);
  }
  // Where the data stands: epochs that are finished, and images of this one, which mean the same in
  // a job of another size.
  std::int64_t epochs_done = 0, images_seen = 0;
  double loss_sum = 0;
  Resumable resumable(world, options, settings_text(options));
  resumable.add("model", *model);
  resumable.add("optimizer", optimizer);
  resumable.add("gradients", ddp);
  resumable.add_number("epochs", epochs_done);
  resumable.add_number("images", images_seen);
  resumable.add_own_number("loss", loss_sum);
  resumable.add_own_number("seconds", result.train_seconds);
  resumable.add_number("accuracy", result.test_accuracy);
  std::int64_t done = resumable.load();
  result.epochs = static_cast<int>(epochs_done);
  const std::int64_t images_a_step = std::int64_t{options.batch_size} * world.size();
  std::int64_t in_epoch = std::min(images_seen / images_a_step, steps_per_epoch - 1);
  const auto order_of_epoch = [&] {
    return shard(train.labels.size(0), world, options.batch_size,
                 options.seed * 1'000'003 + static_cast<std::uint64_t>(result.epochs + 1))
        .to(device);
  };
  torch::Tensor order = order_of_epoch();
  const std::int64_t last_step =
      options.steps > 0 ? options.steps
                        : done + (options.epochs - result.epochs) * steps_per_epoch - in_epoch;
  Progress progress(leader, last_step, done);
  double recent_loss = 0;
  std::int64_t recent_steps = 0;
  // Enough for a curve.
  constexpr std::int64_t kProgressLines = 200;
  const std::int64_t progress_every = std::max<std::int64_t>(1, last_step / kProgressLines);
  auto began = Clock::now();
  // The clock stands still while the model is tested.
  const auto test_model = [&](const char* event, std::int64_t steps_of_loss) {
    result.train_seconds += seconds_since(began);
    const Evaluation evaluation = evaluate(*model, test, world);
    result.test_accuracy = evaluation.accuracy;
    if (log) {
      MetricFields fields = {{"epoch", std::int64_t{result.epochs}},
                             {"step", done},
                             {"train_loss", loss_sum / static_cast<double>(steps_of_loss)},
                             {"test_accuracy", result.test_accuracy},
                             {"test_loss", evaluation.loss},
                             {"train_seconds", result.train_seconds}};
      const MetricFields traffic = traffic_fields(ddp.summary());
      fields.insert(fields.end(), traffic.begin(), traffic.end());
      log->write(event, fields);
      log_layers(*log, done, ddp.layer_reports());
      log_profile(*log, done, ddp.profile());
    }
    began = Clock::now();
    return options.target_accuracy && result.test_accuracy >= *options.target_accuracy;
  };
  for (bool reached = false; !reached && done < last_step;) {
    resumable.begin_step();
    const auto step_begin = Clock::now();
    const auto batch = order.narrow(0, in_epoch * options.batch_size, options.batch_size);
    for (auto& group : optimizer.param_groups()) {
      group.options().set_lr(learning_rate(options, done, last_step));
    }
    const bool tests_then = in_epoch + 1 == steps_per_epoch || done + 1 == last_step ||
                            (options.eval_every > 0 && (done + 1) % options.eval_every == 0);
    if (log && tests_then) ddp.measure_layers();
    ddp.zero_grad();
    const auto scores = ddp.forward(train.images.index_select(0, batch));
    const auto loss = torch::cross_entropy_loss(scores, train.labels.index_select(0, batch));
    loss.backward();
    optimizer.step();
    const double loss_value = loss.item<double>();
    loss_sum += loss_value;
    ++done;
    ++in_epoch;
    progress.step(loss_value, seconds_since(step_begin), ddp.summary());
    recent_loss += loss_value;
    ++recent_steps;
    if (log && (done % progress_every == 0 || done == 1)) {
      log->write("progress",
                 {{"step", done},
                  {"train_loss", recent_loss / static_cast<double>(recent_steps)},
                  {"train_seconds", result.train_seconds + seconds_since(began)},
                  {"sent_bytes", static_cast<std::int64_t>(ddp.summary().total.sent_bytes)}});
      recent_loss = 0;
      recent_steps = 0;
    }
    if (in_epoch == steps_per_epoch) {
      ++result.epochs;
      reached = test_model("epoch", steps_per_epoch);
      progress.epoch(result.epochs, options.epochs, result.test_accuracy, result.train_seconds);
      in_epoch = 0;
      loss_sum = 0;
      order = order_of_epoch();
    } else if (done == last_step || (options.eval_every > 0 && done % options.eval_every == 0)) {
      reached = test_model("test", in_epoch);
    }
    epochs_done = result.epochs;
    images_seen = in_epoch * images_a_step;
    resumable.end_step(done, reached || done == last_step);
  }
  result.traffic = ddp.summary();
  const auto allocation = ddp.allocation();
  if (leader && allocation && !options.plan.empty()) {
    lgreco::write_text_file(options.plan, lgreco::plan_text(*allocation));
  }
  result.parameters_crc32c = ddp.parameters_crc32c();
  result.replicas_equal = ddp.replicas_equal();
  if (log) log_result(*log, result);
  return result;
}

namespace {

// A line on what lgreco(...) or auto did; nothing without them.
std::string adaptation_text(const CommunicationSummary& traffic) {
  if (const AutomaticSummary& automatic = traffic.automatic; !automatic.reason.empty()) {
    return concat("  chosen            ", automatic.setting, ": ", automatic.reason, "\n");
  }
  const AdaptationSummary& adaptation = traffic.adaptation;
  if (adaptation.plans == 0) return "";
  return concat("  plans             ", adaptation.plans, ", which took ", adaptation.seconds(),
                " s (", 100 * adaptation.share(), " % of the time) and ",
                static_cast<double>(adaptation.sent_bytes) / 1e6, " MB\n  compressed layers ",
                traffic.compressed_wire_bytes_per_step() / 1e6, " MB a step, ",
                traffic.compressed_ratio(), "x less\n");
}

}  // namespace

void print_summary(const TrainingResult& result) {
  const auto megabytes = [](double bytes) { return bytes / 1e6; };
  const CommunicationSummary& traffic = result.traffic;
  std::cout << concat(
      "\ncommunication summary of one rank (", result.world_size, " ranks over ", result.backend,
      ")\n  compression       ", result.compression, "\n  steps             ", traffic.steps, " (",
      traffic.warmup_steps, " uncompressed for warm-up)\n  sent              ",
      megabytes(static_cast<double>(traffic.total.sent_bytes)), " MB in all, ",
      megabytes(traffic.wire_bytes_per_step()), " MB a step\n  uncompressed      ",
      megabytes(traffic.dense_bytes_per_step()), " MB a step, so ", traffic.ratio(),
      "x less was sent\n", adaptation_text(traffic), "  test accuracy     ",
      100 * result.test_accuracy, " % after ", result.epochs, " epochs, ", result.train_seconds,
      " s of training\n  parameters        CRC-32C ", result.parameters_crc32c, ", ",
      result.replicas_equal ? "bit-equal on all ranks" : "DIFFERENT between ranks", "\n");
}

}  // namespace thinwire::examples
