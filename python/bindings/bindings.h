// The parts of the Python module thinwire._C, one function each.
#pragma once

#include <pybind11/pybind11.h>

namespace thinwire::python {

// thinwire's exceptions become those of thinwire.errors.
void bind_errors(pybind11::module_& module);
// Telling the other ranks what is wrong on this one.
void bind_agreement(pybind11::module_& module);
void bind_backend(pybind11::module_& module);
void bind_compression(pybind11::module_& module);
void bind_outer(pybind11::module_& module);
void bind_moe(pybind11::module_& module);
void bind_peft(pybind11::module_& module);

}  // namespace thinwire::python
