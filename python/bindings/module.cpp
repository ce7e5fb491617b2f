// thinwire._C: the library's parts as the package in python/thinwire uses them. Its functions take
// what that package has checked; users call the package.
#include <torch/csrc/utils/pybind.h>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/python/bindings/bindings.h"

namespace py = pybind11;

namespace thinwire::python {
namespace {

// The Python class of an error. Borrowed for the life of the process: a translator may run after
// the module was taken apart.
PyObject* error_class(const char* name) {
  return py::object(py::module_::import("thinwire.errors").attr(name)).release().ptr();
}

}  // namespace

void bind_errors(py::module_&) {
  static PyObject* const base = error_class("Error");
  static PyObject* const invalid = error_class("InvalidArgument");
  static PyObject* const file = error_class("FileError");
  static PyObject* const frame = error_class("FrameError");
  static PyObject* const comm = error_class("CommError");
  static PyObject* const internal = error_class("InternalError");
  // For every module, since torch's own functions throw what a Work of ours has thrown.
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const InvalidArgument& e) {
      PyErr_SetString(invalid, e.what());
    } catch (const FileError& e) {
      PyErr_SetString(file, e.what());
    } catch (const FrameError& e) {
      PyErr_SetString(frame, e.what());
    } catch (const CommError& e) {
      py::object made = py::reinterpret_borrow<py::object>(comm)(e.what());
      made.attr("rank") = e.rank();
      made.attr("operation") = e.operation();
      PyErr_SetObject(comm, made.ptr());
    } catch (const InternalError& e) {
      PyErr_SetString(internal, e.what());
    } catch (const Error& e) {
      PyErr_SetString(base, e.what());
    }
  });
}

}  // namespace thinwire::python

PYBIND11_MODULE(_C, module) {
  // The classes that ours derive from.
  py::module_::import("torch._C._distributed_c10d");
  module.attr("version") = THINWIRE_VERSION;
  module.attr("torch_version") = THINWIRE_TORCH_VERSION;
  using namespace thinwire::python;
  bind_errors(module);
  bind_agreement(module);
  bind_backend(module);
  bind_compression(module);
  bind_outer(module);
  bind_moe(module);
  bind_peft(module);
  module.def("codecs", [] {
    std::vector<std::tuple<std::string, std::string, std::string>> rows;
    for (const auto& entry : thinwire::codec_table())
      rows.emplace_back(entry.name, entry.parameters, entry.summary);
    return rows;
  });
}
