#include "thinwire/examples/support/lora_trainer.h"

#include <unistd.h>

#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <optional>

#include "thinwire/common/error.h"
#include "thinwire/common/metrics.h"
#include "thinwire/common/spec.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/compressors/peft/pack.h"
#include "thinwire/examples/support/resumable.h"
#include "thinwire/examples/support/run_settings.h"
#include "thinwire/torch_ext/adapter/adapter_broadcast.h"
#include "thinwire/torch_ext/adapter/lora.h"

namespace thinwire::examples {
namespace {

namespace fs = std::filesystem;

// Two hidden layers of one width.
class WideMlp : public Classifier {
 public:
  explicit WideMlp(std::int64_t hidden) {
    namespace nn = torch::nn;
    layers_ = register_module(
        "layers", nn::Sequential(nn::Flatten(), nn::Linear(784, hidden), nn::ReLU(),
                                 nn::Linear(hidden, hidden), nn::ReLU(), nn::Linear(hidden, 10)));
  }
  torch::Tensor forward(torch::Tensor images) override { return layers_->forward(images); }

 private:
  torch::nn::Sequential layers_;
};

// The images whose class is in [first, last), of the first `count` (0: of all), on a device.
ImageSet select_classes(const ImageSet& set, int first, int last, std::int64_t count,
                        torch::Device device) {
  const auto numel = count == 0 ? set.labels.size(0) : std::min(count, set.labels.size(0));
  const auto labels = set.labels.narrow(0, 0, numel);
  const auto chosen = labels.ge(first).logical_and_(labels.lt(last)).nonzero().flatten();
  return {set.images.index_select(0, chosen).to(device), labels.index_select(0, chosen).to(device)};
}

// Batches of this rank's share of a set, without end.
class Batches {
 public:
  Batches(const ImageSet& set, const launch::World& world, std::int64_t size, std::uint64_t seed)
      : set_(set),
        size_(size),
        mine_(share_of_rank(world, set.labels.size(0))),
        generator_(at::detail::createCPUGenerator(seed * 1'000'003 +
                                                  static_cast<std::uint64_t>(world.rank()))) {
    // True on all ranks or on none.
    check(set.labels.size(0) >= world.size(), set.labels.size(0), " images are too few for ",
          world.size(), " ranks");
  }
  ImageSet next() {
    const auto picks = torch::randint(mine_.size(0), {size_}, generator_, torch::kLong);
    const auto indices = mine_.index_select(0, picks).to(set_.labels.device());
    return {set_.images.index_select(0, indices), set_.labels.index_select(0, indices)};
  }
  at::Generator& generator() { return generator_; }
  std::int64_t share() const { return mine_.size(0); }

 private:
  const ImageSet& set_;
  std::int64_t size_;
  torch::Tensor mine_;
  at::Generator generator_;
};

double evaluate(Lora* lora, std::shared_ptr<WideMlp>& model, const ImageSet& set,
                launch::World& world) {
  torch::NoGradGuard no_grad;
  if (lora != nullptr) lora->refresh();
  const torch::Device device = set.labels.device();
  torch::Tensor correct = torch::zeros({1}, torch::TensorOptions(torch::kLong).device(device));
  for (const auto& indices : share_of_rank(world, set.labels.size(0)).to(device).split(500)) {
    const auto scores = model->forward(set.images.index_select(0, indices));
    correct += scores.argmax(1).eq(set.labels.index_select(0, indices)).sum();
  }
  return world.all_reduce(correct.item<double>()) /
         static_cast<double>(std::max<std::int64_t>(1, set.labels.size(0)));
}

OuterOptimizerOptions outer_options(const LoraTrainingOptions& options, Timeline* timeline) {
  return {.inner_steps = options.inner_steps,
          .learning_rate = options.outer_learning_rate,
          .momentum = options.outer_momentum,
          .compression = options.compression,
          .granularity = peft::parse_granularity(options.granularity),
          .seed = options.seed,
          .timeline = timeline,
          .record_gradients = options.record_gradients,
          .record_from = options.record_from,
          .record_steps = options.record_steps};
}

// The base, on the device of the images: from its file, or trained by local SGD with uncompressed
// meetings.
void make_base(launch::World& world, std::shared_ptr<WideMlp>& model, const ImageSet& set,
               const LoraTrainingOptions& options) {
  const bool leader = world.rank() == 0;
  const bool found = leader && !options.base.empty() && fs::exists(options.base);
  if (found) torch::load(model, options.base.string(), torch::kCPU);
  model->to(set.images.device());
  const bool loaded = world.all_reduce(found ? 1 : 0) != 0;
  torch::optim::SGD inner(model->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  constexpr std::int64_t kMeetEvery = 50;
  // Its construction gives all ranks the leader's weights, loaded or fresh.
  OuterOptimizer optimizer(
      *model, inner, world.group(),
      {.inner_steps = kMeetEvery, .learning_rate = 1, .momentum = 0, .compression = "none"});
  if (loaded) return;
  Batches batches(set, world, options.batch_size, options.seed);
  for (std::int64_t step = 0; step < options.base_steps; ++step) {
    const ImageSet batch = batches.next();
    inner.zero_grad();
    torch::cross_entropy_loss(model->forward(batch.images), batch.labels).backward();
    optimizer.step();
  }
  if (options.base_steps % kMeetEvery != 0) optimizer.outer_step();
  if (leader && !options.base.empty()) {
    if (options.base.has_parent_path()) fs::create_directories(options.base.parent_path());
    // Under its name once it is whole: whoever finds it loads it.
    const fs::path fresh = options.base.string() + concat(".", getpid());
    torch::save(model, fresh.string());
    fs::rename(fresh, options.base);
  }
}

// A folder for the adapter's files, removed at the end where the user named none.
class OutputFolder {
 public:
  explicit OutputFolder(const fs::path& named)
      : temporary_(named.empty()),
        path_(temporary_ ? fs::temp_directory_path() / concat("thinwire_lora_", getpid()) : named) {
  }
  ~OutputFolder() {
    if (!temporary_) return;
    // One by one: the remove_all() that programs with torch get is libtorch's, and crashes.
    for (const char* name : {"adapter/adapter_config.json", "adapter/adapter_model.safetensors",
                             "adapter", "adapter.compeft", ""}) {
      std::error_code ignored;
      fs::remove(path_ / name, ignored);
    }
  }
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  fs::path operator/(const char* name) const { return path_ / name; }

 private:
  bool temporary_;
  fs::path path_;
};

std::shared_ptr<WideMlp> copy_of(const WideMlp& base, std::int64_t hidden) {
  auto copy = std::make_shared<WideMlp>(hidden);
  copy->to(base.parameters().front().device());
  torch::NoGradGuard no_grad;
  const auto values = base.named_parameters();
  for (auto& item : copy->named_parameters()) item.value().copy_(values[item.key()]);
  return copy;
}

// Packs the adapter with the density that was asked for or, as the paper does, with what a grid of
// densities and scales gives on held-out images: the smallest file that loses at most half a point,
// else the best.
peft::PackOptions pack(const fs::path& adapter, const fs::path& packed, const WideMlp& base,
                       const ImageSet& held_out, const LoraTrainingOptions& options) {
  const peft::DeltaSource source = peft::open_adapter_dir(adapter);
  const auto fresh = copy_of(base, options.hidden);
  const auto accuracy = [&](const AdapterState& state) {
    torch::NoGradGuard no_grad;
    Lora lora(fresh, state);
    return lora.forward(fresh, held_out.images).argmax(1).eq(held_out.labels).sum().item<double>() /
           static_cast<double>(held_out.labels.size(0));
  };
  peft::PackOptions chosen{.density = options.pack_density,
                           .granularity = peft::Granularity::kTensor,
                           .overwrite = true};
  if (options.pack_density == 0) {
    const double enough = accuracy(read_adapter(adapter)) - 0.005;
    double best = -1;
    for (const double density : {0.05, 0.1, 0.2, 0.3, 0.5}) {
      for (const char* scale : {"mean", "std:1", "std:1.5", "std:2", "std:3"}) {
        peft::PackOptions trial = chosen;
        trial.density = density;
        trial.scale = peft::ScaleRule::parse(scale);
        peft::pack(source, packed, trial);
        const double found = accuracy(read_adapter(packed));
        if (found <= best) continue;
        best = found;
        chosen = trial;
      }
      if (best >= enough) break;
    }
  }
  peft::pack(source, packed, chosen);
  return chosen;
}

// Accuracy of the packed file on a base made anew, after its way to all ranks.
double packed_accuracy(launch::World& world, const WideMlp& base, const fs::path& packed,
                       const ImageSet& test, const LoraTrainingOptions& options) {
  auto fresh = copy_of(base, options.hidden);
  Lora lora(fresh, LoraOptions{.rank = options.rank, .alpha = options.alpha});
  AdapterSwitch expert(lora);
  broadcast_expert(expert, *world.group(), /*root=*/0, packed);
  return evaluate(&lora, fresh, test, world);
}

// What a checkpoint's training and this one must have in common.
std::string settings_text(const LoraTrainingOptions& options) {
  return concat(
      "--compression=", Spec::parse(options.compression).str(),
      "\n--granularity=", options.granularity, "\n--seed=", options.seed,
      "\n--inner-steps=", options.inner_steps, "\n--outer-lr=", options.outer_learning_rate,
      "\n--outer-momentum=", options.outer_momentum, "\n--lr=", options.learning_rate,
      "\n--rank=", options.rank, "\n--alpha=", options.alpha, "\n--hidden=", options.hidden,
      "\n--batch-size=", options.batch_size, "\n--base-classes=", options.base_classes,
      "\n--train-samples=", options.train_samples, "\n");
}

void log_result(MetricsLog& log, const LoraResult& result, const launch::World& world,
                const LoraTrainingOptions& options, std::int64_t epochs) {
  const OuterSummary& outer = result.outer;
  const auto steps = static_cast<double>(outer.outer_steps);
  log.write("result",
            {{"backend", world.backend()},
             {"compression", Spec::parse(options.compression).str()},
             {"world_size", std::int64_t{world.size()}},
             {"model", concat("mlp", options.hidden, "-lora", options.rank)},
             {"epochs", epochs},
             {"test_accuracy", result.test_accuracy},
             {"train_seconds", result.train_seconds},
             {"wire_bytes_per_step", static_cast<double>(outer.traffic.sent_bytes) / steps},
             {"dense_bytes_per_step", static_cast<double>(outer.traffic.dense_bytes) / steps},
             {"parameters_crc32c", std::int64_t{result.parameters_crc32c}},
             {"replicas_equal", true},  // every outer step has compared them
             {"packed_accuracy", result.packed_accuracy},
             {"packed_bytes", static_cast<std::int64_t>(result.packed_bytes)},
             {"packed_density", result.packed_density},
             {"packed_scale", result.packed_scale},
             {"adapter_bytes", static_cast<std::int64_t>(result.adapter_bytes)},
             {"base_accuracy", result.base_accuracy},
             {"adapter_parameters", result.adapter_parameters},
             {"inner_steps", outer.inner_steps},
             {"outer_steps", outer.outer_steps},
             {"exchange_seconds", outer.exchange_seconds},
             {"wait_seconds", outer.wait_seconds}});
}

}  // namespace

LoraResult train_lora(launch::World& world, const FashionMnist& data,
                      const LoraTrainingOptions& options) {
  at::set_num_threads(threads_of_rank(world, options.threads));
  constexpr int kClasses = 10;
  const int split = options.base_classes;
  const bool leader = world.rank() == 0;
  std::optional<MetricsLog> log;
  if (leader && !options.log.empty()) log.emplace(options.log);

  const torch::Device device = device_of(world, options);
  auto model = std::make_shared<WideMlp>(options.hidden);
  make_base(world, model, select_classes(data.train, 0, split, options.train_samples, device),
            options);
  // A tenth of the images is kept from training, to choose how the adapter is packed.
  const ImageSet all = select_classes(data.train, split, kClasses, options.train_samples, device);
  const std::int64_t rest = std::clamp<std::int64_t>(all.labels.size(0) / 10, 1, 2000);
  const std::int64_t used = all.labels.size(0) - rest;
  check(used > 0, all.labels.size(0), " images of the new classes are too few");
  const ImageSet train{all.images.narrow(0, 0, used), all.labels.narrow(0, 0, used)};
  const ImageSet held_out{all.images.narrow(0, used, rest), all.labels.narrow(0, used, rest)};
  const ImageSet test = select_classes(data.test, split, kClasses, options.test_samples, device);

  LoraResult result;
  result.base_accuracy = evaluate(nullptr, model, test, world);
  torch::manual_seed(options.seed + 1);
  Lora lora(model, LoraOptions{.rank = options.rank, .alpha = options.alpha});
  for (const auto& factor : lora.parameters()) result.adapter_parameters += factor.numel();
  torch::optim::AdamW inner(lora.parameters(), torch::optim::AdamWOptions(options.learning_rate));
  const std::unique_ptr<Timeline> timeline = make_timeline(world, options);
  OuterOptimizer optimizer(lora, inner, world.group(), outer_options(options, timeline.get()));
  Batches batches(train, world, options.batch_size, options.seed + 1);

  // Saved at meetings alone, where all ranks have the same weights.
  Resumable resumable(world, options, settings_text(options));
  resumable.add("base", *model);
  resumable.add("adapter", lora);
  resumable.add("inner", inner);
  resumable.add("outer", optimizer);
  resumable.add_generator("batches", batches.generator());
  resumable.add_own_number("seconds", result.train_seconds);
  const std::int64_t resumed = resumable.load();

  auto begin = Clock::now();
  double loss_sum = 0;
  for (std::int64_t step = resumed * options.inner_steps;
       step < options.outer_steps * options.inner_steps; ++step) {
    if (step % options.inner_steps == 0) resumable.begin_step();
    const ImageSet batch = batches.next();
    inner.zero_grad();
    const auto loss = torch::cross_entropy_loss(lora.forward(model, batch.images), batch.labels);
    loss.backward();
    loss_sum += loss.item<double>();
    if (!optimizer.step()) continue;
    const OuterSummary outer = optimizer.summary();
    const double mean = loss_sum / static_cast<double>(options.inner_steps);
    loss_sum = 0;
    if (leader) {
      std::printf("outer step %lld/%lld  loss %.4f  sent %.3f MB  exchange %.0f ms\n",
                  static_cast<long long>(outer.outer_steps),
                  static_cast<long long>(options.outer_steps), mean,
                  static_cast<double>(outer.traffic.sent_bytes) / 1e6,
                  1e3 * outer.exchange_seconds / static_cast<double>(outer.outer_steps));
      std::fflush(stdout);
    }
    if (log)
      log->write("outer_step", {{"outer_step", outer.outer_steps},
                                {"train_loss", mean},
                                {"exchange_seconds", outer.exchange_seconds},
                                {"wait_seconds", outer.wait_seconds}});
    result.train_seconds += seconds_since(begin);
    resumable.end_step(outer.outer_steps, outer.outer_steps == options.outer_steps);
    begin = Clock::now();
  }
  result.outer = optimizer.summary();
  result.parameters_crc32c = optimizer.synchronised_crc32c();
  result.test_accuracy = evaluate(&lora, model, test, world);

  const OutputFolder folder(options.output);
  const fs::path packed = folder / "adapter.compeft";
  if (leader) {
    write_adapter(lora.state(), folder / "adapter", /*overwrite=*/true);
    result.adapter_bytes = fs::file_size(folder / "adapter" / peft::kAdapterModelName);
    const auto how = pack(folder / "adapter", packed, *model, held_out, options);
    result.packed_bytes = fs::file_size(packed);
    result.packed_density = how.density;
    result.packed_scale = how.scale.str();
  }
  result.packed_accuracy = packed_accuracy(world, *model, packed, test, options);
  const std::int64_t seen = options.outer_steps * options.inner_steps * options.batch_size;
  if (log) log_result(*log, result, world, options, seen / batches.share());
  return result;
}

void print_summary(const LoraResult& result, const LoraTrainingOptions& options) {
  const OuterSummary& outer = result.outer;
  const auto steps = static_cast<double>(outer.outer_steps);
  std::cout << concat(
      "\nnew classes         ", 100 * result.base_accuracy, " % before, ",
      100 * result.test_accuracy, " % after adapting, ", 100 * result.packed_accuracy,
      " % from the packed file\nadapter             ", result.adapter_parameters, " parameters, ",
      result.adapter_bytes, " bytes, packed ", result.packed_bytes, " (density ",
      result.packed_density, ", scale ", result.packed_scale, "; ",
      static_cast<double>(result.adapter_bytes) / static_cast<double>(result.packed_bytes),
      "x smaller)\nouter steps         ", outer.outer_steps, " of ", options.compression, ", ",
      static_cast<double>(outer.traffic.sent_bytes) / steps / 1e6, " MB and ",
      1e3 * outer.exchange_seconds / steps, " ms each\nparameters          CRC-32C ",
      result.parameters_crc32c, ", bit-equal on all ranks\n");
}

}  // namespace thinwire::examples
