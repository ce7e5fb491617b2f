#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include "thinwire/common/error.h"
#include "thinwire/python/bindings/bindings.h"
#include "thinwire/torch_ext/ddp/comm_hook.h"
#include "thinwire/torch_ext/ddp/model_reducer.h"

namespace py = pybind11;

namespace thinwire::python {
namespace {

using Named = std::vector<std::pair<std::string, at::Tensor>>;

std::vector<LayerInfo> layers_of(const Named& parameters) {
  std::vector<LayerInfo> layers;
  for (const auto& [name, parameter] : parameters) layers.push_back(layer_of(name, parameter));
  return layers;
}

// What the ranks compare, in the words of DistributedDataParallel.
std::string description_of(const Named& parameters) {
  std::string text;
  for (const auto& [name, parameter] : parameters) {
    text += concat("parameter ", name, " ", parameter.sizes(), " ", parameter.scalar_type(), "\n");
  }
  return text;
}

// Where the gradients are. The CPU where there are none.
at::Device device_of(const Named& parameters) {
  const at::Device device = parameters.empty() ? at::kCPU : parameters.front().second.device();
  for (const auto& [name, parameter] : parameters) {
    check(parameter.device() == device, "parameter '", name, "' is on ", parameter.device(),
          ", parameter '", parameters.front().first, "' on ", device,
          ": all gradients that are averaged together have to be on one device");
  }
  return device;
}

std::shared_ptr<GradientExchange> compress(c10d::Reducer& reducer,
                                           const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                           const Named& parameters,
                                           const CompressionOptions& options,
                                           bool may_hold_unused_layers) {
  std::unordered_map<const c10::TensorImpl*, std::string> names;
  for (const auto& [name, parameter] : parameters) {
    names.emplace(parameter.unsafeGetTensorImpl(), name);
  }
  auto exchange = std::make_shared<GradientExchange>(
      group, description_of(parameters), layers_of(parameters), options, /*timeline=*/nullptr,
      comm::CommunicationThreadOptions(), device_of(parameters));
  reducer.register_comm_hook(std::make_unique<CompressionHook>(
      exchange, std::move(names), may_hold_unused_layers, detail::locally_used(reducer)));
  return exchange;
}

py::dict as_dict(const CommunicationSummary& summary) {
  py::dict made;
  made["steps"] = summary.steps;
  made["warmup_steps"] = summary.warmup_steps;
  made["dense_bytes"] = summary.total.dense_bytes;
  made["sent_bytes"] = summary.total.sent_bytes;
  made["dense_bytes_per_step"] = summary.dense_bytes_per_step();
  made["sent_bytes_per_step"] = summary.wire_bytes_per_step();
  made["ratio"] = summary.ratio();
  if (!summary.automatic.setting.empty()) {
    made["setting"] = summary.automatic.setting;
    made["reason"] = summary.automatic.reason;
  }
  return made;
}

std::map<std::string, std::string> as_text(const comm::Plan& plan) {
  std::map<std::string, std::string> texts;
  for (const auto& [name, setting] : plan.layers()) texts.emplace(name, setting.spec());
  return texts;
}

}  // namespace

void bind_compression(py::module_& module) {
  py::class_<CompressionOptions>(module, "CompressionOptions")
      .def(py::init([](std::string spec, std::int64_t warmup_steps, std::int64_t min_numel,
                       bool compress_1d, std::vector<std::pair<std::string, std::string>> overrides,
                       std::uint64_t seed, std::string link_model, std::string strategy,
                       std::string record_gradients, std::int64_t record_from,
                       std::int64_t record_steps) {
             CompressionOptions options(std::move(spec));
             options.warmup_steps = warmup_steps;
             options.min_numel = min_numel;
             options.compress_1d = compress_1d;
             options.overrides = std::move(overrides);
             options.seed = seed;
             options.link_model = std::move(link_model);
             options.strategy = std::move(strategy);
             options.record_gradients = std::move(record_gradients);
             options.record_from = record_from;
             options.record_steps = record_steps;
             return options;
           }),
           py::arg("spec"), py::arg("warmup_steps"), py::arg("min_numel"), py::arg("compress_1d"),
           py::arg("overrides"), py::arg("seed"), py::arg("link_model"), py::arg("strategy"),
           py::arg("record_gradients"), py::arg("record_from"), py::arg("record_steps"));

  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<GradientExchange, std::shared_ptr<GradientExchange>>(module, "GradientExchange")
      .def("stats", [](const GradientExchange& e) { return as_dict(e.summary()); })
      .def("plan", [](const GradientExchange& e) { return as_text(e.plan()); })
      .def("check_device", &GradientExchange::check_device, no_gil)
      .def("state", &GradientExchange::state, no_gil)
      .def(
          "load_state",
          [](GradientExchange& e, const GradientState& state) { e.load_state(state); },
          py::arg("state"), no_gil);
  module.def("compress", &compress, py::arg("reducer"), py::arg("group"), py::arg("parameters"),
             py::arg("options"), py::arg("may_hold_unused_layers"), no_gil);
  module.def(
      "make_plan",
      [](const Named& parameters, const CompressionOptions& options) {
        return as_text(make_plan(layers_of(parameters), options).plan);
      },
      py::arg("parameters"), py::arg("options"));
  module.def("merge_states", &merge_states, py::arg("states"), py::arg("world_size"));
}

}  // namespace thinwire::python
