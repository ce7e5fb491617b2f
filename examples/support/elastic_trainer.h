// The training of an image classifier that goes on when ranks die or come.
#pragma once

#include <memory>

#include "thinwire/examples/support/fashion_mnist.h"
#include "thinwire/examples/support/models.h"
#include "thinwire/examples/support/trainer.h"
#include "thinwire/examples/support/training_options.h"
#include "thinwire/launch/elastic/elastic_world.h"

namespace thinwire::examples {

// As train_classifier(), without its log and its tests on the way. The images of an epoch are taken
// in one order, the same on all ranks; a step takes the next batch for every rank that there is. So
// each image is seen once an epoch, whoever dies: a step that is made again begins where it began,
// and the survivors share what would have been the dead rank's. The learning rate follows the
// images that were seen. Throws InvalidArgument for options that it has not.
TrainingResult train_elastic(launch::ElasticWorld& world, std::shared_ptr<Classifier> model,
                             const FashionMnist& data, const TrainingOptions& options);

}  // namespace thinwire::examples
