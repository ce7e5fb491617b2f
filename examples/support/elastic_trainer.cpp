#include "thinwire/examples/support/elastic_trainer.h"

#include <torch/optim/sgd.h>

#include <algorithm>

#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/examples/support/run_settings.h"
#include "thinwire/launch/elastic/elastic_training.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire::examples {
namespace {

void check_elastic_options(const TrainingOptions& options) {
  const auto refuse = [](bool is_set, const char* name) {
    check(!is_set, "--elastic has no ", name, ": it keeps no log, tests once, at the end, and ",
          "what it has learnt is with the ranks that are left");
  };
  check(options.device == "cpu", "--elastic trains on the CPU; --device=", options.device,
        " is not tried there yet");
  refuse(!options.checkpoint.empty(), "--checkpoint");
  refuse(!options.log.empty(), "--log");
  refuse(!options.timeline.empty(), "--timeline");
  refuse(!options.plan.empty(), "--plan");
  refuse(options.profile, "--profile");
  refuse(options.eval_every > 0, "--eval-every");
  refuse(options.target_accuracy.has_value(), "--target-accuracy");
}

// By each rank for itself: there may be another number of ranks at any time.
double test_accuracy(Classifier& model, const ImageSet& set, std::int64_t samples) {
  const torch::NoGradGuard no_grad;
  model.eval();
  const std::int64_t all = set.labels.size(0);
  const std::int64_t images = samples == 0 ? all : std::min(samples, all);
  std::int64_t correct = 0;
  constexpr std::int64_t kAtOnce = 500;
  for (std::int64_t begin = 0; begin < images; begin += kAtOnce) {
    const std::int64_t count = std::min(kAtOnce, images - begin);
    const auto found = model.forward(set.images.narrow(0, begin, count)).argmax(1);
    correct += found.eq(set.labels.narrow(0, begin, count)).sum().item<std::int64_t>();
  }
  model.train();
  return static_cast<double>(correct) / static_cast<double>(images);
}

// The order in which an epoch takes the images, of the last epoch that was asked for.
class ImageOrder {
 public:
  ImageOrder(std::int64_t images, std::uint64_t seed) : images_(images), seed_(seed) {}

  torch::Tensor of(std::int64_t epoch, std::int64_t begin, std::int64_t count) {
    if (epoch != epoch_) {
      auto generator =
          at::detail::createCPUGenerator(seed_ * 1'000'003 + static_cast<std::uint64_t>(epoch + 1));
      order_ = torch::randperm(images_, generator, torch::kLong);
      epoch_ = epoch;
    }
    return order_.narrow(0, begin, count);
  }

 private:
  std::int64_t images_;
  std::uint64_t seed_;
  std::int64_t epoch_ = -1;
  torch::Tensor order_;
};

}  // namespace

TrainingResult train_elastic(launch::ElasticWorld& world, std::shared_ptr<Classifier> model,
                             const FashionMnist& data, const TrainingOptions& options) {
  check_elastic_options(options);
  at::set_num_threads(threads_of_rank(world.now(), options.threads));
  const std::int64_t all = data.train.labels.size(0);
  const std::int64_t images =
      options.train_samples == 0 ? all : std::min(options.train_samples, all);
  CompressionOptions compression = compression_of(options);
  compression.min_numel = options.min_numel;
  compression.warmup_steps = options.warmup_steps;
  compression.link_model = options.link_model;
  DistributedDataParallel ddp(model, world.group(),
                              {.compression = compression, .bucket_cap_mb = options.bucket_cap_mb});
  torch::optim::SGD optimizer(
      model->parameters(),
      torch::optim::SGDOptions(options.learning_rate).momentum(options.momentum));
  std::int64_t epoch = 0, seen = 0, steps = 0;  // `seen`: images of this epoch

  launch::ElasticTraining training(world);
  training.moves(ddp);
  training.replicated("model", *model);
  training.replicated("optimizer", optimizer);
  training.replicated("epoch", epoch);
  training.replicated("seen", seen);
  training.replicated("steps", steps);

  ImageOrder order(images, options.seed);
  const auto more = [&] {
    return epoch < options.epochs && (options.steps == 0 || steps < options.steps);
  };
  const auto begin = Clock::now();
  training.run(more, [&] {
    const std::int64_t batch = options.batch_size, taken = batch * world.size();
    check(taken <= images, images, " images do not fill one batch of ", batch, " on each of ",
          world.size(), " ranks");
    const double done =
        static_cast<double>(epoch) + static_cast<double>(seen) / static_cast<double>(images);
    const double rate =
        options.schedule == "constant" ? 1 : std::max(0.0, 1 - done / options.epochs);
    for (auto& group : optimizer.param_groups())
      group.options().set_lr(options.learning_rate * rate);
    const auto own = order.of(epoch, seen + batch * world.rank(), batch);
    ddp.zero_grad();
    const auto scores = ddp.forward(data.train.images.index_select(0, own));
    const auto loss = torch::cross_entropy_loss(scores, data.train.labels.index_select(0, own));
    loss.backward();
    optimizer.step();
    ++steps;
    seen += taken;
    if (steps % 100 == 0 && world.rank() == 0)
      log::info("step ", steps, ", epoch ", epoch + 1, ", loss ", loss.item<double>(), ", ",
                world.size(), " ranks");
    if (images - seen < taken) {  // the rest does not fill a batch on every rank
      ++epoch;
      seen = 0;
    }
  });
  TrainingResult result{.backend = world.now().backend(),
                        .compression = compression_text(options.compression),
                        .world_size = world.size(),
                        .model = options.model};
  result.epochs = static_cast<int>(epoch);
  result.train_seconds = seconds_since(begin);
  result.test_accuracy = test_accuracy(*model, data.test, options.test_samples);
  result.traffic = ddp.summary();
  result.parameters_crc32c = ddp.parameters_crc32c();
  result.replicas_equal = ddp.replicas_equal();
  return result;
}

}  // namespace thinwire::examples
