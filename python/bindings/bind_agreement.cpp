#include <torch/csrc/utils/pybind.h>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/join/next_name.h"
#include "thinwire/common/error.h"
#include "thinwire/python/bindings/bindings.h"

namespace py = pybind11;

namespace thinwire::python {
namespace {

void agree(const c10::intrusive_ptr<c10d::ProcessGroup>& group, const std::string& what,
           const std::string& text, const std::optional<std::string>& mistake) {
  comm::agree_on_result(*group, comm::next_name(*group, "python"), what, [&]() -> std::string {
    if (mistake) throw InvalidArgument(*mistake);
    return text;
  });
}

void refuse(const c10d::ProcessGroup& group, const std::string& operation,
            const std::string& mistake) {
  comm::guard(group, operation, 0, [&] { throw InvalidArgument(mistake); });
}

}  // namespace

void bind_agreement(py::module_& module) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  // Collective. InvalidArgument on every rank where one rank has a mistake, which it tells, or
  // another text than the others.
  module.def(
      "agree",
      [](const c10::intrusive_ptr<c10d::ProcessGroup>& group, const std::string& what,
         const std::string& text,
         const std::optional<std::string>& mistake) { agree(group, what, text, mistake); },
      py::arg("group"), py::arg("what"), py::arg("text"), py::arg("mistake"), no_gil);
  // Throws InvalidArgument, here and on the ranks that wait for this one in a collective.
  module.def(
      "refuse",
      [](const c10::intrusive_ptr<c10d::ProcessGroup>& group, const std::string& operation,
         const std::string& mistake) { refuse(*group, operation, mistake); },
      py::arg("group"), py::arg("operation"), py::arg("mistake"), no_gil);
}

}  // namespace thinwire::python
