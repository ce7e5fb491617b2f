#include <pybind11/chrono.h>
#include <torch/csrc/utils/pybind.h>

#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/python/bindings/bindings.h"
#include "thinwire/torch_ext/backend/compressed_backend.h"

namespace py = pybind11;

namespace thinwire::python {
namespace {

py::dict as_dict(const BackendStatistics& statistics) {
  py::dict all;
  for (const auto& [name, operation] : statistics.operations) {
    py::dict one;
    one["coded"] = operation.coded;
    one["exact"] = operation.exact;
    one["without_key"] = operation.without_key;
    one["dense_bytes"] = operation.dense_bytes;
    one["sent_bytes"] = operation.sent_bytes;
    all[name.c_str()] = one;
  }
  return all;
}

// FeedbackKey as a context manager.
struct KeyScope {
  std::string name;
  std::unique_ptr<FeedbackKey> key;
};

}  // namespace

void bind_backend(py::module_& module) {
  py::class_<BackendOptions>(module, "BackendOptions")
      .def(py::init([](std::string compression, std::string all_gather, std::string all_to_all,
                       std::int64_t min_numel, std::uint64_t seed) {
             return BackendOptions{std::move(compression), std::move(all_gather),
                                   std::move(all_to_all), min_numel, seed};
           }),
           py::arg("compression"), py::arg("all_gather"), py::arg("all_to_all"),
           py::arg("min_numel"), py::arg("seed"))
      .def_readonly("compression", &BackendOptions::compression)
      .def_readonly("all_gather", &BackendOptions::all_gather)
      .def_readonly("all_to_all", &BackendOptions::all_to_all)
      .def_readonly("min_numel", &BackendOptions::min_numel)
      .def_readonly("seed", &BackendOptions::seed);

  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<CompressedBackend, c10d::Backend, c10::intrusive_ptr<CompressedBackend>>(
      module, "CompressedBackend")
      .def(
          py::init([](const c10::intrusive_ptr<c10d::Backend>& inner,
                      const c10::intrusive_ptr<c10d::Store>& store, const BackendOptions& options) {
            return c10::make_intrusive<CompressedBackend>(inner, store, options);
          }),
          py::arg("inner"), py::arg("store"), py::arg("options"), no_gil)
      .def_property_readonly("inner", &CompressedBackend::wrapped)
      .def_property_readonly("thinwire_options", &CompressedBackend::options)
      .def("statistics", [](const CompressedBackend& b) { return as_dict(b.statistics()); })
      .def("state", &CompressedBackend::state, no_gil)
      .def("load_state", &CompressedBackend::load_state, py::arg("state"), no_gil);

  py::class_<KeyScope>(module, "FeedbackKey")
      .def(py::init([](std::string name) {
        return KeyScope{std::move(name), nullptr};
      }))
      .def("__enter__", [](KeyScope& s) { s.key = std::make_unique<FeedbackKey>(s.name); })
      .def("__exit__", [](KeyScope& s, const py::args&) { s.key.reset(); });

  // `ranks`: of the whole job, in the group's order.
  module.def(
      "make_mpi_backend",
      [](const std::vector<int>& ranks, std::chrono::milliseconds timeout) {
        return comm::make_mpi_backend(ranks, timeout);
      },
      py::arg("ranks"), py::arg("timeout"), no_gil);
  // Whether this process can be the rank `rank` of a job of `size`.
  module.def("check_mpi_backend", &comm::check_mpi_backend, py::arg("rank"), py::arg("size"));
}

}  // namespace thinwire::python
