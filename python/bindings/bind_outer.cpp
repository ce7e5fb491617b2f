#include <torch/csrc/api/include/torch/optim/sgd.h>
#include <torch/csrc/utils/pybind.h>

#include "thinwire/common/error.h"
#include "thinwire/python/bindings/bindings.h"
#include "thinwire/torch_ext/outer/outer_optimizer.h"

namespace py = pybind11;

namespace thinwire::python {
namespace {

using Named = std::vector<std::pair<std::string, at::Tensor>>;

// A C++ module with Python's parameters and buffers, under their names: the same tensors.
class MirroredModule {
 public:
  MirroredModule(const Named& parameters, const Named& buffers) {
    for (const auto& [name, tensor] : parameters) {
      const auto [module, leaf] = place_of(name);
      module->register_parameter(leaf, tensor, tensor.requires_grad());
    }
    for (const auto& [name, tensor] : buffers) {
      const auto [module, leaf] = place_of(name);
      module->register_buffer(leaf, tensor);
    }
  }
  const torch::nn::Module& root() const { return *root_; }

 private:
  // The submodule of a dotted name, made where there is none, and the name in it.
  std::pair<torch::nn::Module*, std::string> place_of(const std::string& name) {
    torch::nn::Module* module = root_.get();
    std::string path;
    std::size_t begin = 0;
    for (std::size_t dot; (dot = name.find('.', begin)) != std::string::npos; begin = dot + 1) {
      path = name.substr(0, dot);
      auto& made = modules_[path];
      if (made == nullptr) {
        made = std::make_shared<torch::nn::Module>();
        module->register_module(name.substr(begin, dot - begin), made);
      }
      module = made.get();
    }
    return {module, name.substr(begin)};
  }

  std::shared_ptr<torch::nn::Module> root_ = std::make_shared<torch::nn::Module>();
  std::map<std::string, std::shared_ptr<torch::nn::Module>> modules_;
};

std::vector<at::Tensor> tensors_of(const Named& named) {
  std::vector<at::Tensor> tensors;
  for (const auto& item : named) tensors.push_back(item.second);
  return tensors;
}

// A Python optimizer as the inner one: its step() is all that is used.
class PythonOptimizer final : public torch::optim::Optimizer {
 public:
  PythonOptimizer(const Named& parameters, py::function step)
      : Optimizer(tensors_of(parameters), std::make_unique<torch::optim::SGDOptions>(1.0)),
        step_(std::move(step)) {}
  torch::Tensor step(LossClosure) override {
    const py::gil_scoped_acquire gil;
    step_();
    return {};
  }
  void save(torch::serialize::OutputArchive&) const override {}
  void load(torch::serialize::InputArchive&) override {}

 private:
  py::function step_;
};

struct PythonOuter {
  PythonOuter(const Named& parameters, const Named& buffers, py::function step,
              const c10::intrusive_ptr<c10d::ProcessGroup>& group,
              const OuterOptimizerOptions& options)
      : module(parameters, buffers), inner(parameters, std::move(step)) {
    const py::gil_scoped_release no_gil;
    outer = std::make_unique<OuterOptimizer>(module.root(), inner, group, options);
  }
  MirroredModule module;
  PythonOptimizer inner;
  std::unique_ptr<OuterOptimizer> outer;
};

py::dict as_dict(const OuterSummary& summary) {
  py::dict made;
  made["inner_steps"] = summary.inner_steps;
  made["outer_steps"] = summary.outer_steps;
  made["skipped_steps"] = summary.skipped_steps;
  made["dense_bytes"] = summary.traffic.dense_bytes;
  made["sent_bytes"] = summary.traffic.sent_bytes;
  made["ratio"] = summary.traffic.sent_bytes == 0
                      ? 1.0
                      : static_cast<double>(summary.traffic.dense_bytes) /
                            static_cast<double>(summary.traffic.sent_bytes);
  made["wait_seconds"] = summary.wait_seconds;
  made["exchange_seconds"] = summary.exchange_seconds;
  return made;
}

}  // namespace

void bind_outer(py::module_& module) {
  py::class_<OuterOptimizerOptions>(module, "OuterOptimizerOptions")
      .def(py::init([](std::int64_t inner_steps, std::optional<double> learning_rate,
                       std::optional<double> momentum, std::optional<bool> nesterov,
                       std::string compression, const std::string& granularity,
                       std::int64_t min_numel,
                       std::vector<std::pair<std::string, std::string>> overrides,
                       std::uint64_t seed, bool check_replicas) {
             OuterOptimizerOptions options;
             options.inner_steps = inner_steps;
             options.learning_rate = learning_rate;
             options.momentum = momentum;
             options.nesterov = nesterov;
             options.compression = std::move(compression);
             options.granularity = peft::parse_granularity(granularity);
             options.min_numel = min_numel;
             options.overrides = std::move(overrides);
             options.seed = seed;
             options.check_replicas = check_replicas;
             return options;
           }),
           py::arg("inner_steps"), py::arg("learning_rate"), py::arg("momentum"),
           py::arg("nesterov"), py::arg("compression"), py::arg("granularity"),
           py::arg("min_numel"), py::arg("overrides"), py::arg("seed"), py::arg("check_replicas"));

  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<PythonOuter>(module, "OuterOptimizer")
      .def(py::init([](const Named& parameters, const Named& buffers, py::function step,
                       const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                       const OuterOptimizerOptions& options) {
             return std::make_unique<PythonOuter>(parameters, buffers, std::move(step), group,
                                                  options);
           }),
           py::arg("parameters"), py::arg("buffers"), py::arg("step"), py::arg("group"),
           py::arg("options"))
      .def(
          "step", [](PythonOuter& o) { return o.outer->step(); }, no_gil)
      .def(
          "outer_step", [](PythonOuter& o) { o.outer->outer_step(); }, no_gil)
      .def("set_learning_rate",
           [](PythonOuter& o, double rate) { o.outer->set_learning_rate(rate); })
      .def("stats", [](const PythonOuter& o) { return as_dict(o.outer->summary()); })
      .def("plan",
           [](const PythonOuter& o) {
             std::map<std::string, std::string> texts;
             for (const auto& [name, setting] : o.outer->plan().layers())
               texts.emplace(name, setting.spec());
             return texts;
           })
      .def("warnings", [](const PythonOuter& o) { return o.outer->warnings(); })
      .def(
          "state", [](const PythonOuter& o) { return o.outer->state(); }, no_gil)
      .def(
          "load_state",
          [](PythonOuter& o, const NamedTensors& state) { o.outer->load_state(state); },
          py::arg("state"), no_gil);
}

}  // namespace thinwire::python
