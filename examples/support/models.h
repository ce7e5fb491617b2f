// The image classifiers of the examples: [N, 1, 28, 28] -> scores [N, 10].
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <torch/nn.h>

namespace thinwire::examples {

class Classifier : public torch::nn::Module {
 public:
  virtual torch::Tensor forward(torch::Tensor images) = 0;
};

// "cnn" (two convolutions, 0.4 M parameters), "linear" (784-10, 8 k), "mlp" (784-512-256-10,
// 0.5 M), "resnet20" (He et al., 2016, with a stride-2 stem, 0.27 M) or "resnet_wide" (the same
// with twice the channels, 1.1 M). Throws InvalidArgument for another name.
std::shared_ptr<Classifier> make_classifier(std::string_view name);
std::vector<std::string> classifier_names();

}  // namespace thinwire::examples
