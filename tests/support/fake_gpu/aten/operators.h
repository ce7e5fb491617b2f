// Any operator of ATen on CUDA tensors, computed by the CPU's kernel as a task of the stream.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace thinwire::fake_gpu {

// A boxed kernel. The host does not wait, unless the result is no tensor or its size depends on
// values, where CUDA waits too.
void run_operator(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace thinwire::fake_gpu
