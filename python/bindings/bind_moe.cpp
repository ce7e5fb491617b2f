#include <torch/csrc/utils/pybind.h>

#include "thinwire/common/error.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/python/bindings/bindings.h"

namespace py = pybind11;

namespace thinwire::python {
namespace {

template <typename Choice>
Choice chosen(const char* what, const std::string& text,
              const std::vector<std::pair<const char*, Choice>>& known) {
  std::string names;
  for (const auto& [name, value] : known) {
    if (text == name) return value;
    names += concat(names.empty() ? "" : ", ", name);
  }
  throw InvalidArgument(concat("unknown ", what, " '", text, "', known are ", names));
}

moe::MoEOptions options_of(std::int64_t dim, std::int64_t hidden, std::int64_t experts,
                           std::int64_t top_k, const std::string& gate,
                           const std::string& activation, bool bias, double capacity_factor,
                           const std::string& rows, const std::string& dedup, double balance_factor,
                           double z_factor, std::int64_t shared_hidden,
                           const std::string& expert_gradient, std::uint32_t layer,
                           std::uint64_t seed) {
  moe::MoEOptions options;
  options.router.dim = dim;
  options.router.experts = experts;
  options.router.top_k = top_k;
  options.router.gate = moe::gate_of(gate);
  options.router.seed = seed;
  options.hidden = hidden;
  options.activation = chosen<moe::Activation>("activation", activation,
                                               {{"relu", moe::Activation::kRelu},
                                                {"gelu", moe::Activation::kGelu},
                                                {"silu", moe::Activation::kSilu},
                                                {"swiglu", moe::Activation::kSwiGlu}});
  options.bias = bias;
  options.capacity_factor = capacity_factor;
  if (!rows.empty()) options.rows = moe::parse_rows(rows);
  options.dedup = moe::parse_dedup(dedup);
  options.balance_factor = balance_factor;
  options.z_factor = z_factor;
  options.shared_hidden = shared_hidden;
  options.expert_gradient = chosen<moe::ExpertGradient>(
      "expert_gradient", expert_gradient,
      {{"mean", moe::ExpertGradient::kMean}, {"sum", moe::ExpertGradient::kSum}});
  options.layer = layer;
  options.seed = seed;
  return options;
}

std::vector<std::pair<std::string, at::Tensor>> pairs_of(
    const torch::OrderedDict<std::string, at::Tensor>& named) {
  std::vector<std::pair<std::string, at::Tensor>> pairs;
  for (const auto& item : named) pairs.emplace_back(item.key(), item.value());
  return pairs;
}

}  // namespace

void bind_moe(py::module_& module) {
  py::class_<moe::MoEOptions>(module, "MoEOptions")
      .def(py::init(&options_of), py::arg("dim"), py::arg("hidden"), py::arg("experts"),
           py::arg("top_k"), py::arg("gate"), py::arg("activation"), py::arg("bias"),
           py::arg("capacity_factor"), py::arg("rows"), py::arg("dedup"), py::arg("balance_factor"),
           py::arg("z_factor"), py::arg("shared_hidden"), py::arg("expert_gradient"),
           py::arg("layer"), py::arg("seed"));

  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<moe::MoELayer, std::shared_ptr<moe::MoELayer>>(module, "MoELayer")
      .def(py::init([](const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                       const moe::MoEOptions& options) {
             return std::make_shared<moe::MoELayer>(options, group);
           }),
           py::arg("group"), py::arg("options"), no_gil)
      .def(
          "forward",
          [](moe::MoELayer& layer, const at::Tensor& tokens,
             const std::optional<at::Tensor>& padding) {
            auto result = layer.forward(tokens, padding.value_or(at::Tensor()));
            return std::make_pair(result.output, result.loss);
          },
          py::arg("tokens"), py::arg("padding"), no_gil)
      .def(
          "train", [](moe::MoELayer& layer, bool on) { layer.train(on); }, py::arg("on"))
      .def("named_parameters",
           [](const moe::MoELayer& layer) { return pairs_of(layer.named_parameters()); })
      .def("named_buffers",
           [](const moe::MoELayer& layer) { return pairs_of(layer.named_buffers()); })
      .def("expert_parameters", &moe::MoELayer::expert_parameters)
      .def("update_expert_bias", &moe::MoELayer::update_expert_bias, no_gil)
      .def("local_state", &moe::MoELayer::local_state, no_gil)
      .def("full_state", &moe::MoELayer::full_state, no_gil)
      .def(
          "load_state",
          [](moe::MoELayer& layer, const NamedTensors& state) { layer.load_state(state); },
          py::arg("state"), no_gil);
}

}  // namespace thinwire::python
