#include "thinwire/torch_ext/adapter/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/pack.h"
#include "thinwire/tests/compressors/peft/peft_fixtures.h"

namespace thinwire {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace nn = torch::nn;

// Typed members and a Sequential: neither lets a module be replaced.
struct NetImpl : nn::Module {
  NetImpl() {
    conv =
        register_module("conv", nn::Conv2d(nn::Conv2dOptions(2, 6, {3, 2}).stride(2).padding(1)));
    body = register_module("body",
                           nn::Sequential(nn::Flatten(), nn::Linear(6 * 4 * 4, 10), nn::ReLU()));
    head = register_module("head", nn::Linear(nn::LinearOptions(10, 3).bias(false)));
  }
  at::Tensor forward(const at::Tensor& x) { return head(body->forward(at::relu(conv(x)))); }
  nn::Conv2d conv{nullptr};
  nn::Sequential body{nullptr};
  nn::Linear head{nullptr};
};
TORCH_MODULE(Net);

at::Tensor images() {
  return at::randn({5, 2, 7, 6}, at::detail::createCPUGenerator(3), at::kFloat);
}

// Factors that change something.
void randomise(Lora& lora, double scale = 0.3) {
  at::NoGradGuard no_grad;
  const auto generator = at::detail::createCPUGenerator(5);
  for (at::Tensor& factor : lora.parameters())
    factor.copy_(scale * at::randn(factor.sizes(), generator, at::kFloat));
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "";
}

TEST(Lora, StartsAsTheBaseAndFreezesIt) {
  Net net;
  const at::Tensor before = net(images());
  {
    Lora lora(net.ptr(), LoraOptions{.rank = 4});
    EXPECT_THAT(lora.target_modules(), ElementsAre("conv", "body.1", "head"));
    EXPECT_TRUE(at::equal(lora.forward(net, images()), before));  // B is zero
    for (const auto& parameter : net->parameters()) EXPECT_FALSE(parameter.requires_grad());
    std::vector<std::string> names;
    for (const auto& item : lora.named_parameters()) names.push_back(item.key());
    EXPECT_THAT(names, ::testing::UnorderedElementsAre(
                           "conv.lora_A.weight", "conv.lora_B.weight", "body.1.lora_A.weight",
                           "body.1.lora_B.weight", "head.lora_A.weight", "head.lora_B.weight"));
    EXPECT_EQ(net->named_parameters().size(), 5);
  }
  for (const auto& parameter : net->parameters()) EXPECT_TRUE(parameter.requires_grad());
  EXPECT_TRUE(at::equal(net(images()), before));
}

TEST(Lora, AddsTheProductOfTheFactors) {
  Net net;
  Lora lora(net.ptr(), LoraOptions{.rank = 4, .alpha = 6});
  randomise(lora);
  // By definition: the base's output plus scale * B(A(x)), layer after layer.
  const auto f = lora.named_parameters();
  const at::Tensor x = images();
  const auto base = net->named_parameters();
  at::Tensor y =
      at::conv2d(x, base["conv.weight"], base["conv.bias"], 2, 1) +
      1.5 * at::conv2d(at::conv2d(x, f["conv.lora_A.weight"], {}, 2, 1), f["conv.lora_B.weight"]);
  const auto linear = [&](const at::Tensor& in, const std::string& path) {
    return in.mm(base[path + ".weight"].t()) +
           1.5 * in.mm(f[path + ".lora_A.weight"].t()).mm(f[path + ".lora_B.weight"].t());
  };
  y = at::relu(linear(at::relu(y).flatten(1), "body.1") + base["body.1.bias"]);
  y = linear(y, "head");
  EXPECT_LT((lora.forward(net, x) - y).abs().max().item<double>(), 1e-4);
  EXPECT_EQ(lora.scale_of("head"), 1.5);
  // Gradients reach the factors as they do in the definition.
  const auto gradients = [&](const at::Tensor& output) {
    lora.zero_grad();
    output.pow(2).sum().backward();
    std::vector<at::Tensor> result;
    for (const auto& factor : lora.parameters()) result.push_back(factor.grad().clone());
    return result;
  };
  const auto expected = gradients(y), found = gradients(lora.forward(net, x));
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_LT((expected[i] - found[i]).abs().max().item<double>(),
              1e-4 * (1 + expected[i].abs().max().item<double>()));
}

TEST(Lora, LearnsWithoutMovingTheBase) {
  Net net;
  const at::Tensor conv = net->conv->weight.detach().clone();
  Lora lora(net.ptr(), LoraOptions{.rank = 2});
  torch::optim::Adam optimizer(lora.parameters(), 1e-2);
  double first = 0, last = 0;
  for (int step = 0; step < 40; ++step) {
    optimizer.zero_grad();
    const auto loss = torch::mse_loss(lora.forward(net, images()), at::ones({5, 3}));
    loss.backward();
    optimizer.step();
    (step == 0 ? first : last) = loss.item<double>();
  }
  EXPECT_LT(last, first / 4);
  EXPECT_TRUE(at::equal(net->named_parameters()["conv.weight"], conv));
}

TEST(Lora, UnmergesToTheVeryBits) {
  Net net;
  const auto before = net->head->weight.detach().clone();
  at::Tensor adapted;
  {
    Lora lora(net.ptr());
    randomise(lora);
    adapted = lora.forward(net, images()).detach();
    lora.merge();
    EXPECT_TRUE(lora.merged());
    EXPECT_TRUE(at::equal(net(images()), adapted));
    EXPECT_FALSE(at::equal(net->named_parameters()["head.weight"], before));
    lora.unmerge();
    EXPECT_TRUE(at::equal(net->named_parameters()["head.weight"], before));
    EXPECT_TRUE(at::equal(lora.forward(net, images()), adapted));
    lora.merge();  // and the destructor unmerges
  }
  EXPECT_TRUE(at::equal(net->head->weight, before));
}

TEST(Lora, PatternsChooseTheModules) {
  Net net;
  {
    Lora lora(net.ptr(), LoraOptions{.target_modules = {"body.*"}});
    EXPECT_THAT(lora.target_modules(), ElementsAre("body.1"));
    EXPECT_THAT(error_of([&] {
                  lora.refresh();
                  Lora second(net.ptr());
                }),
                HasSubstr("'body.1' carries another adapter"));
  }
  EXPECT_THAT(error_of([&] {
                Lora(net.ptr(), LoraOptions{.target_modules = {"*", "tail"}});
              }),
              HasSubstr("'tail' matches no Linear"));
  EXPECT_THAT(error_of([&] { Lora(net.ptr(), LoraOptions{.rank = 0}); }), HasSubstr("got 0"));
  nn::Sequential grouped(nn::Conv2d(nn::Conv2dOptions(4, 4, 3).groups(2)));
  EXPECT_THAT(error_of([&] { Lora(grouped.ptr()); }), HasSubstr("2 groups"));
}

// A module that stands in the tree twice, and a weight that two modules share.
struct TiedImpl : nn::Module {
  TiedImpl() {
    first = register_module("first", nn::Linear(nn::LinearOptions(4, 4).bias(false)));
    register_module("again", first.ptr());
    tied = register_module("tied", nn::Linear(nn::LinearOptions(4, 4).bias(false)));
    tied->weight = first->weight;
  }
  at::Tensor forward(const at::Tensor& x) { return tied(at::relu(first(x))); }
  nn::Linear first{nullptr}, tied{nullptr};
};
TORCH_MODULE(Tied);

TEST(Lora, AWeightOfSeveralNamesHasOneAdapter) {
  Tied net;
  const at::Tensor x = at::randn({3, 4}), w = net->first->weight.detach().clone();
  AdapterState twice;
  {
    Lora lora(net.ptr(), LoraOptions{.rank = 2, .alpha = 2});
    EXPECT_THAT(lora.target_modules(), ElementsAre("first"));
    randomise(lora);
    const auto factors = lora.named_parameters();
    const at::Tensor adapted =
        w + factors["first.lora_B.weight"].mm(factors["first.lora_A.weight"]);
    const at::Tensor expected = at::relu(x.mm(adapted.t())).mm(adapted.t());
    EXPECT_TRUE(at::allclose(lora.forward(net, x), expected, 1e-4, 1e-5));
    lora.merge();
    EXPECT_TRUE(at::allclose(net(x), expected, 1e-4, 1e-5));
    const AdapterState state = lora.state();
    EXPECT_EQ(state.tensors.size(), 2);
    lora.unmerge();
    twice = state;
    for (const char* factor : {"lora_A.weight", "lora_B.weight"})
      twice.tensors[concat("base_model.model.again.", factor)] =
          state.tensors.at(concat("base_model.model.first.", factor));
    lora.load_state(state);
    EXPECT_THAT(error_of([&] { lora.load_state(twice); }), HasSubstr("has 4 tensors"));
  }
  EXPECT_TRUE(at::equal(net->first->weight, w));
  EXPECT_TRUE(net->tied->weight.is_same(net->first->weight));
  EXPECT_THAT(error_of([&] { Lora(net.ptr(), twice); }),
              HasSubstr("factors for 'again', whose weight is that of 'first'"));
}

TEST(Lora, TravelsThroughDirectoriesAndPackedFiles) {
  const peft::test::TemporaryDir dir;
  Net net;
  at::Tensor adapted;
  AdapterState saved;
  {
    Lora lora(net.ptr(), LoraOptions{.rank = 3, .alpha = 5, .rslora = true});
    randomise(lora);
    adapted = lora.forward(net, images()).detach();
    saved = lora.state();
    write_adapter(saved, dir / "adapter", false);
    EXPECT_THROW(write_adapter(saved, dir / "adapter", false), FileError);
  }
  {
    Lora lora(net.ptr(), read_adapter(dir / "adapter"));
    EXPECT_DOUBLE_EQ(lora.scale_of("conv"), 5 / std::sqrt(3.0));
    EXPECT_TRUE(at::equal(lora.forward(net, images()), adapted));
    EXPECT_EQ(lora.state().config, saved.config);
  }
  peft::pack(peft::open_adapter_dir(dir / "adapter"), dir / "packed",
             {.density = 0.5, .granularity = peft::Granularity::kTensor});
  peft::unpack_to_dir(peft::PackedFile(dir / "packed"), dir / "unpacked", false);
  const AdapterState packed = read_adapter(dir / "packed");
  const AdapterState unpacked = read_adapter(dir / "unpacked");
  EXPECT_EQ(packed.config, saved.config);
  ASSERT_EQ(packed.tensors.size(), 6);
  for (const auto& [name, tensor] : packed.tensors) {
    EXPECT_TRUE(at::equal(tensor, unpacked.tensors.at(name))) << name;
    EXPECT_FALSE(at::equal(tensor, saved.tensors.at(name))) << name;
  }
  Lora lora(net.ptr(), packed);
  EXPECT_GT(at::cosine_similarity(lora.forward(net, images()).flatten(), adapted.flatten(), 0)
                .item<double>(),
            0.3);
}

TEST(Lora, RefusesAdaptersThatDoNotFit) {
  Net net;
  AdapterState good;
  {
    Lora lora(net.ptr(), LoraOptions{.rank = 3});
    good = lora.state();
  }
  const auto refusal = [&](const std::function<void(AdapterState&)>& change) {
    AdapterState bad = good;
    change(bad);
    return error_of([&] { Lora lora(net.ptr(), bad); });
  };
  const auto set = [](const std::string& key, const std::string& value) {
    return [=](AdapterState& a) {
      const auto at = a.config.find("\"" + key + "\"");
      const auto begin = a.config.find(':', at) + 1;
      a.config.replace(begin, a.config.find('\n', at) - begin - 1, value);
    };
  };
  EXPECT_EQ(refusal([](AdapterState&) {}), "");
  EXPECT_THAT(refusal(set("use_dora", "true")), HasSubstr("use_dora = true"));
  EXPECT_THAT(refusal(set("bias", "\"all\"")), HasSubstr("bias"));
  EXPECT_THAT(refusal(set("peft_type", "\"IA3\"")), HasSubstr("type IA3"));
  // Their factors are relative to another base.
  for (const char* init : {"pissa", "pissa_niter_4", "olora", "corda", "loftq"})
    EXPECT_THAT(refusal(set("init_lora_weights", concat('"', init, '"'))),
                HasSubstr(concat("init_lora_weights = '", init, "'")));
  EXPECT_EQ(refusal(set("init_lora_weights", "\"gaussian\"")), "");
  const std::string stem = "base_model.model.head.lora_";
  EXPECT_THAT(refusal([&](AdapterState& a) { a.tensors.erase(stem + "B.weight"); }),
              HasSubstr("has 5 tensors"));
  EXPECT_THAT(refusal([&](AdapterState& a) {
                a.tensors["base_model.model.tail.lora_A.weight"] = at::zeros({3, 3});
              }),
              HasSubstr("'base_model.model.tail.lora_A.weight' belongs to no"));
  EXPECT_THAT(refusal([&](AdapterState& a) { a.tensors["head.bias"] = at::zeros({3}); }),
              HasSubstr("'head.bias'"));
  EXPECT_THAT(refusal([&](AdapterState& a) {
                a.tensors[stem + "B.weight"] = at::zeros({3, 4});
              }),
              HasSubstr("shape [3, 4], expected [3, 3]"));
  EXPECT_THAT(refusal([&](AdapterState& a) {
                a.tensors[stem + "B.weight"] = at::zeros({3, 3}, at::kDouble);
              }),
              HasSubstr("B.weight' is Double"));
  // Whatever was refused, the base is whole.
  for (const auto& parameter : net->parameters()) EXPECT_TRUE(parameter.requires_grad());
  Lora lora(net.ptr(), good);
  AdapterState other = good;
  set("lora_alpha", "99")(other);
  EXPECT_THAT(error_of([&] { lora.load_state(other); }), HasSubstr("lora_alpha 99"));
}

}  // namespace
}  // namespace thinwire
