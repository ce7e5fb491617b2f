#include "thinwire/tests/support/fake_gpu/aten/operators.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <c10/cuda/CUDAFunctions.h>

#include <functional>
#include <memory>
#include <optional>

#include "thinwire/tests/support/fake_gpu/aten/tasks.h"
#include "thinwire/tests/support/fake_gpu/host_sync.h"

namespace thinwire::fake_gpu {
namespace {

using c10::IValue;
using torch::jit::Stack;

// Replaces every tensor of a value, whatever holds it.
using Replace = std::function<at::Tensor(const at::Tensor&)>;

IValue replaced(const IValue& value, const Replace& replace) {
  if (value.isTensor())
    return value.toTensor().defined() ? IValue(replace(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& one : value.toTensorVector()) list.push_back(replace(one));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const auto& one : value.toOptionalTensorVector())
      list.push_back(one.has_value() && one->defined() ? std::optional(replace(*one)) : one);
    return list;
  }
  return value;
}

// The arguments as the CPU's kernel takes them.
IValue for_cpu(const IValue& value, const Replace& replace) {
  if (value.isDevice()) return at::Device(at::kCPU);
  if (value.isGenerator()) return IValue();  // a CUDA generator draws for no CPU kernel
  return replaced(value, replace);
}

// A scalar in a tensor's clothes, 2 of `x * 2`: a copy would take part in the choice of the dtype.
bool is_number(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->is_wrapped_number();
}

bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

// CUDA waits here as well: a value or a size comes back to the host.
bool depends_on_values(const c10::FunctionSchema& schema) {
  for (const c10::Argument& result : schema.returns()) {
    const auto kind = result.type()->kind();
    if (kind != c10::TypeKind::TensorType && kind != c10::TypeKind::ListType) return true;
  }
  for (const char* name : {"nonzero", "masked_select", "unique", "bincount", "repeat_interleave",
                           "_local_scalar_dense"})
    if (schema.name().find(name) != std::string::npos) return true;
  return false;
}

at::Device device_of(const Stack& arguments) {
  std::optional<at::Device> device;
  const auto look = [&](const at::Tensor& tensor) {
    if (tensor.is_cuda()) device = tensor.device();
    return tensor;
  };
  for (const IValue& value : arguments) {
    replaced(value, look);
    if (value.isDevice() && value.toDevice().is_cuda()) device = value.toDevice();
  }
  if (device.has_value() && device->has_index()) return *device;
  return {at::kCUDA, c10::cuda::current_device()};
}

// The results of a run on tensors of the same shapes that hold nothing of interest.
std::optional<Stack> results_of_dry_run(const c10::OperatorHandle& op, const Stack& arguments) {
  Stack dry;
  for (const IValue& value : arguments) {
    dry.push_back(for_cpu(value, [](const at::Tensor& tensor) {
      if (is_number(tensor)) return tensor;
      at::Tensor zeros =
          at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
      return zeros.zero_();
    }));
  }
  try {
    op.callBoxed(dry);
  } catch (const c10::Error&) {
    return std::nullopt;  // zeros are no arguments for it: an inverse, say
  }
  return dry;
}

// Fills the memory of a result in a task from what the CPU's kernel returned.
struct Output {
  std::size_t index = 0;                    // of the results
  std::optional<std::size_t> element = {};  // of a list
  TensorPlace place = {};
};

at::Tensor new_result(const at::Tensor& like, at::Device device) {
  return at::empty_strided(like.sizes(), like.strides(), like.options().device(device));
}

// The argument that a result is, `a` of `add_(a!)`.
const IValue* aliased(const c10::FunctionSchema& schema, const c10::Argument& result,
                      const Stack& arguments) {
  if (!is_written(result)) return nullptr;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const c10::Argument& argument = schema.arguments()[i];
    if (is_written(argument) &&
        argument.alias_info()->beforeSets() == result.alias_info()->beforeSets())
      return &arguments[i];
  }
  return nullptr;
}

bool all_aliased(const c10::FunctionSchema& schema, const Stack& arguments) {
  for (const c10::Argument& result : schema.returns())
    if (aliased(schema, result, arguments) == nullptr) return false;
  return true;
}

bool has_out_arguments(const c10::FunctionSchema& schema) {
  for (const c10::Argument& argument : schema.arguments())
    if (argument.is_out()) return true;
  return false;
}

// Gives `out` arguments the size that they are about to have.
void resize_out(const c10::FunctionSchema& schema, const Stack& arguments, const Stack& dry) {
  for (std::size_t r = 0; r < schema.returns().size(); ++r) {
    const IValue* out = aliased(schema, schema.returns()[r], arguments);
    if (out == nullptr || !out->isTensor() || !dry[r].isTensor()) continue;
    if (out->toTensor().sizes() != dry[r].toTensor().sizes())
      out->toTensor().resize_(dry[r].toTensor().sizes());
  }
}

// Results on the device, in memory that `outputs` says how to fill.
Stack make_results(const c10::FunctionSchema& schema, const Stack& arguments, const Stack& dry,
                   at::Device device, std::vector<Output>& outputs) {
  Stack results;
  for (std::size_t r = 0; r < schema.returns().size(); ++r) {
    if (const IValue* argument = aliased(schema, schema.returns()[r], arguments)) {
      results.push_back(*argument);
      continue;
    }
    std::size_t element = 0;
    const bool is_list = dry[r].isTensorList();
    results.push_back(replaced(dry[r], [&](const at::Tensor& like) {
      const at::Tensor result = new_result(like, device);
      const auto place = is_list ? std::optional(element++) : std::nullopt;
      outputs.push_back({r, place, TensorPlace::of(result)});
      return result;
    }));
  }
  return results;
}

// The arguments without references to the device's memory, and what the task will touch there.
struct Recorded {
  Stack arguments;  // tensors of the device: empty ones, in the order of `places`
  std::vector<TensorPlace> places;
  std::vector<Access> accesses;
};

// Whether what it writes in place it does not read before.
bool fills_in_place(const c10::FunctionSchema& schema) {
  for (const char* name : {"normal_", "uniform_", "random_", "bernoulli_", "exponential_"})
    if (schema.name().ends_with(name)) return true;
  return false;
}

Recorded record(const c10::FunctionSchema& schema, const Stack& arguments) {
  Recorded recorded;
  const bool fills = fills_in_place(schema);
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const c10::Argument& argument = schema.arguments()[i];
    recorded.arguments.push_back(for_cpu(arguments[i], [&](const at::Tensor& tensor) {
      if (!tensor.is_cuda()) return is_number(tensor) ? tensor : tensor.clone();
      recorded.places.push_back(TensorPlace::of(tensor));
      const TensorPlace& place = recorded.places.back();
      if (!argument.is_out() && !(is_written(argument) && fills))
        recorded.accesses.push_back(place.access(false));
      if (is_written(argument)) recorded.accesses.push_back(place.access(true));
      return at::Tensor(at::empty_strided({0}, {1}, at::TensorOptions(at::kMeta)));
    }));
  }
  return recorded;
}

void run_in_task(const c10::OperatorHandle& op, const Recorded& recorded,
                 const std::vector<Output>& outputs) {
  std::size_t next = 0;
  Stack stack;
  for (const IValue& value : recorded.arguments) {
    stack.push_back(replaced(value, [&](const at::Tensor& tensor) {
      return tensor.is_meta() ? recorded.places[next++].in_task() : tensor;
    }));
  }
  op.callBoxed(stack);
  for (const Output& output : outputs) {
    const IValue& result = stack[output.index];
    output.place.in_task().copy_(
        output.element.has_value() ? result.toTensorVector()[*output.element] : result.toTensor());
  }
}

}  // namespace

void run_operator(const c10::OperatorHandle& op, Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  const at::AutoDispatchBelowAutograd below;
  const c10::NoGradGuard no_grad;
  ++counting().operators;
  if (depends_on_values(schema)) return at::native::cpu_fallback(op, stack);

  const Stack arguments = torch::jit::last(*stack, schema.arguments().size()).vec();
  const at::Device device = device_of(arguments);
  const c10::DeviceGuard guard(device);
  Stack dry;
  if (!all_aliased(schema, arguments) || has_out_arguments(schema)) {
    auto results = results_of_dry_run(op, arguments);
    if (!results.has_value()) {
      const EmulationWait own;
      return at::native::cpu_fallback(op, stack);
    }
    dry = std::move(*results);
    resize_out(schema, arguments, dry);
  }
  std::vector<Output> outputs;
  Stack results = make_results(schema, arguments, dry, device, outputs);
  Recorded recorded = record(schema, arguments);
  std::vector<Access> accesses = recorded.accesses;
  for (const Output& output : outputs) accesses.push_back(output.place.access(true));
  queue(
      device, schema.name(),
      [op, recorded = std::move(recorded), outputs = std::move(outputs)] {
        run_in_task(op, recorded, outputs);
      },
      std::move(accesses));
  torch::jit::drop(*stack, schema.arguments().size());
  for (IValue& result : results) stack->push_back(std::move(result));
}

}  // namespace thinwire::fake_gpu
