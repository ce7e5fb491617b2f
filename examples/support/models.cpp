#include "thinwire/examples/support/models.h"

#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"

namespace thinwire::examples {
namespace {

namespace nn = torch::nn;

constexpr int kClasses = 10;

class LinearClassifier : public Classifier {
 public:
  LinearClassifier() {
    layers_ = register_module("layers", nn::Sequential(nn::Flatten(), nn::Linear(784, kClasses)));
  }
  torch::Tensor forward(torch::Tensor images) override { return layers_->forward(images); }

 private:
  nn::Sequential layers_;
};

class Mlp : public Classifier {
 public:
  Mlp() {
    layers_ = register_module(
        "layers", nn::Sequential(nn::Flatten(), nn::Linear(784, 512), nn::ReLU(),
                                 nn::Linear(512, 256), nn::ReLU(), nn::Linear(256, kClasses)));
  }
  torch::Tensor forward(torch::Tensor images) override { return layers_->forward(images); }

 private:
  nn::Sequential layers_;
};

class Cnn : public Classifier {
 public:
  Cnn() {
    layers_ = register_module(
        "layers", nn::Sequential(nn::Conv2d(nn::Conv2dOptions(1, 32, 3)), nn::ReLU(),
                                 nn::MaxPool2d(2), nn::Conv2d(nn::Conv2dOptions(32, 64, 3)),
                                 nn::ReLU(), nn::MaxPool2d(2), nn::Flatten(), nn::Linear(1600, 256),
                                 nn::ReLU(), nn::Linear(256, kClasses)));
  }
  torch::Tensor forward(torch::Tensor images) override { return layers_->forward(images); }

 private:
  nn::Sequential layers_;
};

nn::Conv2d convolution(int in, int out, int stride) {
  return nn::Conv2d(nn::Conv2dOptions(in, out, 3).stride(stride).padding(1).bias(false));
}

class ResidualBlockImpl : public nn::Module {
 public:
  ResidualBlockImpl(int in, int out, int stride) {
    body_ = register_module(
        "body", nn::Sequential(convolution(in, out, stride), nn::BatchNorm2d(out), nn::ReLU(),
                               convolution(out, out, 1), nn::BatchNorm2d(out)));
    if (stride != 1 || in != out) {
      skip_ = register_module(
          "skip",
          nn::Sequential(nn::Conv2d(nn::Conv2dOptions(in, out, 1).stride(stride).bias(false)),
                         nn::BatchNorm2d(out)));
    }
  }
  torch::Tensor forward(torch::Tensor x) {
    return torch::relu(body_->forward(x) + (skip_ ? skip_->forward(x) : x));
  }

 private:
  nn::Sequential body_{nullptr};
  nn::Sequential skip_{nullptr};
};
TORCH_MODULE(ResidualBlock);

// Three stages of three blocks of `width`, twice and four times as many channels; the stem halves
// the image, which quarters the work.
class ResNet20 : public Classifier {
 public:
  explicit ResNet20(int width) {
    layers_ = register_module(
        "layers", nn::Sequential(convolution(1, width, 2), nn::BatchNorm2d(width), nn::ReLU()));
    int in = width;
    for (const int out : {width, 2 * width, 4 * width}) {
      for (int block = 0; block < 3; ++block) {
        layers_->push_back(ResidualBlock(in, out, block == 0 && out != width ? 2 : 1));
        in = out;
      }
    }
    classifier_ = register_module("classifier", nn::Linear(in, kClasses));
  }
  torch::Tensor forward(torch::Tensor images) override {
    return classifier_->forward(layers_->forward(images).mean({2, 3}));
  }

 private:
  nn::Sequential layers_;
  nn::Linear classifier_{nullptr};
};

}  // namespace

std::vector<std::string> classifier_names() {
  return {"cnn", "linear", "mlp", "resnet20", "resnet_wide"};
}

std::shared_ptr<Classifier> make_classifier(std::string_view name) {
  if (name == "cnn") return std::make_shared<Cnn>();
  if (name == "linear") return std::make_shared<LinearClassifier>();
  if (name == "mlp") return std::make_shared<Mlp>();
  if (name == "resnet20") return std::make_shared<ResNet20>(16);
  if (name == "resnet_wide") return std::make_shared<ResNet20>(32);
  const std::string near = nearest_name(name, classifier_names());
  throw InvalidArgument(concat("unknown model '", name,
                               "'; the models are cnn, linear, mlp, resnet20, resnet_wide",
                               near.empty() ? "" : concat(" (did you mean ", near, "?)")));
}

}  // namespace thinwire::examples
