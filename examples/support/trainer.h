// Data-parallel training of an image classifier: the loop, its progress and its log.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "thinwire/examples/support/fashion_mnist.h"
#include "thinwire/examples/support/models.h"
#include "thinwire/examples/support/training_options.h"
#include "thinwire/launch/world.h"
#include "thinwire/torch_ext/ddp/gradient_exchange.h"

namespace thinwire::examples {

// What a run ends with; equal on all ranks but for `train_seconds`.
struct TrainingResult {
  std::string backend;
  std::string compression;
  int world_size = 1;
  std::string model;
  int epochs = 0;            // finished
  double test_accuracy = 0;  // 0 to 1
  double train_seconds = 0;  // without evaluation
  CommunicationSummary traffic = {};
  std::uint32_t parameters_crc32c = 0;
  bool replicas_equal = false;
};

// Trains on this rank's share of the images and tests after every epoch. Collective. Rank 0 prints
// progress and writes options.log: what run_log.h lists, up to 200 lines of event "progress" with
// the mean loss since the last one, for every test a line that also has the bytes of the compressed
// layers alone and the cost of lgreco(...), of event "epoch" at the end of an epoch, else "test";
// and as its last line the result:
//   {"event":"result","backend":…,"compression":…,"world_size":…,"model":…,"epochs":…,
//    "test_accuracy":…,"train_seconds":…,"wire_bytes_per_step":…,"dense_bytes_per_step":…,
//    "parameters_crc32c":…,"replicas_equal":…}
TrainingResult train_classifier(launch::World& world, std::shared_ptr<Classifier> model,
                                const FashionMnist& data, const TrainingOptions& options);

// The summary that rank 0 prints at the end.
void print_summary(const TrainingResult& result);

}  // namespace thinwire::examples
