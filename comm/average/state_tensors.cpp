#include "thinwire/comm/average/state_tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <string_view>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

at::Tensor to_tensor(std::span<const float> values) {
  at::Tensor tensor = at::empty({static_cast<std::int64_t>(values.size())}, at::kFloat);
  std::ranges::copy(values, tensor.mutable_data_ptr<float>());
  return tensor;
}

// Valid as long as the values; not to be written to.
at::Tensor tensor_in_place(std::span<const float> values) {
  return at::from_blob(const_cast<float*>(values.data()),
                       {static_cast<std::int64_t>(values.size())}, at::kFloat);
}

using Tensors = std::map<std::string, at::Tensor>;

// What there is one of for every element of the model; `make` gives the tensor of some of them.
template <typename Make>
void put_large(const ErrorFeedback::State& residuals, const MomentumCorrection::State& momentum,
               const SecondResidual::State& second, const Make& make, Tensors& tensors) {
  for (const auto& [name, values] : residuals) tensors["residual/" + name] = make(values);
  for (const auto& [name, layer] : momentum) {
    tensors["velocity/" + name] = make(layer.velocity);
    tensors["momentum_residual/" + name] = make(layer.residual);
  }
  for (const auto& [name, ranges] : second) {
    for (const auto& range : ranges) {
      tensors[concat("second_residual/", range.begin, "/", name)] = make(range.values);
    }
  }
}

std::vector<float> to_vector(const std::string& name, const at::Tensor& tensor, std::int64_t dims) {
  check(tensor.defined() && tensor.scalar_type() == at::kFloat && tensor.is_cpu() &&
            tensor.dim() == dims,
        "'", name, "' of a saved state must be a float32 CPU tensor of ", dims, " dimension(s), ",
        tensor.defined() ? concat("got ", toString(tensor.scalar_type()), " ", tensor.sizes())
                         : std::string("it is undefined"));
  const at::Tensor flat = tensor.contiguous();
  const auto* data = flat.const_data_ptr<float>();
  return {data, data + flat.numel()};
}

// Before the bytes of each slot, those to the owners first.
constexpr std::int64_t kGroupNumbers = 11;

at::Tensor to_tensor(const SharedSteps::Group& group) {
  const SlotReport& report = group.report;
  std::vector<double> values = {
      static_cast<double>(group.numel),
      group.slot_bits[0],
      group.slot_bits[1],
      group.reported ? 1.0 : 0.0,
      report.bits[0],
      report.bits[1],
      report.lost[0],
      report.lost[1],
      report.allowed[0],
      report.allowed[1],
      report.log2_step.value_or(std::numeric_limits<double>::quiet_NaN())};
  THINWIRE_ASSERT(values.size() == kGroupNumbers);
  for (const auto& slots : report.slots) values.insert(values.end(), slots.begin(), slots.end());
  at::Tensor tensor = at::empty({static_cast<std::int64_t>(values.size())}, at::kDouble);
  std::ranges::copy(values, tensor.mutable_data_ptr<double>());
  return tensor;
}

SharedSteps::Group to_group(const std::string& name, const at::Tensor& tensor) {
  check(tensor.defined() && tensor.scalar_type() == at::kDouble && tensor.is_cpu() &&
            tensor.dim() == 1 && tensor.numel() >= kGroupNumbers &&
            (tensor.numel() - kGroupNumbers) % 2 == 0,
        "'", name, "' of a saved state must be a float64 CPU tensor of ", kGroupNumbers,
        " elements and two for each slot");
  const at::Tensor flat = tensor.contiguous();
  const auto* v = flat.const_data_ptr<double>();
  SharedSteps::Group group{
      .numel = static_cast<std::int64_t>(v[0]),
      .slot_bits = {v[1], v[2]},
      .reported = v[3] != 0,
      .report = {.bits = {v[4], v[5]}, .lost = {v[6], v[7]}, .allowed = {v[8], v[9]}}};
  if (!std::isnan(v[10])) group.report.log2_step = v[10];
  const bool sound =
      std::ranges::all_of(group.slot_bits, [](double bits) { return bits > 0 && bits <= 64; });
  check(group.numel > 0 && sound, "'", name, "' of a saved state has slots of ", v[1], " and ",
        v[2], " bits for ", v[0], " elements");
  const auto slots = static_cast<std::size_t>(flat.numel() - kGroupNumbers) / 2;
  // No slot takes more than eight bytes an element.
  const double most = 8 * v[0];
  for (const std::size_t leg : {kToOwners, kToAll}) {
    for (const double bytes : std::span(v + kGroupNumbers + leg * slots, slots)) {
      check(bytes >= 0 && bytes <= most, "'", name, "' of a saved state has a slot of ", bytes,
            " bytes for ", v[0], " elements");
      group.report.slots[leg].push_back(static_cast<std::uint32_t>(bytes));
    }
  }
  return group;
}

using BasisPart = std::vector<float> spectral::MatrixBasis::State::*;
using BasisState = spectral::MatrixBasis::State;
constexpr std::array kBasisParts = {
    std::pair<std::string_view, BasisPart>{"left", &BasisState::left},
    std::pair<std::string_view, BasisPart>{"right", &BasisState::right},
    std::pair<std::string_view, BasisPart>{"left_sketch", &BasisState::left_sketch},
    std::pair<std::string_view, BasisPart>{"right_sketch", &BasisState::right_sketch},
    std::pair<std::string_view, BasisPart>{"row_sizes", &BasisState::row_sizes},
    std::pair<std::string_view, BasisPart>{"column_sizes", &BasisState::column_sizes},
    std::pair<std::string_view, BasisPart>{"row_levels", &BasisState::row_levels},
    std::pair<std::string_view, BasisPart>{"column_levels", &BasisState::column_levels}};

void put_basis(const std::string& name, const LayerBasisState& layer,
               std::map<std::string, at::Tensor>& tensors) {
  const BasisState& basis = layer.basis;
  for (const auto& [part, member] : kBasisParts) {
    tensors[concat("basis/", part, "/", name)] = to_tensor(basis.*member);
  }
  const std::array values = {basis.shape.rows, basis.shape.cols, basis.directions, basis.steps,
                             std::int64_t{layer.holds_residuals}};
  at::Tensor shape = at::empty({static_cast<std::int64_t>(values.size())}, at::kDouble);
  std::ranges::transform(values, shape.mutable_data_ptr<double>(),
                         [](std::int64_t value) { return static_cast<double>(value); });
  tensors["basis/shape/" + name] = shape;
}

void add_basis(const std::string& name, std::string_view rest, const at::Tensor& tensor,
               LayerBasesState& bases) {
  const std::size_t slash = std::min(rest.find('/'), rest.size());
  const std::string_view part = rest.substr(0, slash);
  check(slash + 1 < rest.size(), "'", name, "' of a saved state should be basis/PART/PARAMETER");
  LayerBasisState& layer = bases[std::string(rest.substr(slash + 1))];
  for (const auto& [known, member] : kBasisParts) {
    if (part == known) layer.basis.*member = to_vector(name, tensor, 1);
    if (part == known) return;
  }
  check(part == "shape" && tensor.defined() && tensor.scalar_type() == at::kDouble &&
            tensor.is_cpu() && tensor.dim() == 1 && tensor.numel() == 5,
        "'", name, "' of a saved state is no part of a basis");
  const at::Tensor flat = tensor.contiguous();
  const auto* v = flat.const_data_ptr<double>();
  check(std::all_of(v, v + 5, [](double value) { return value >= 0 && value < 0x1p52; }), "'", name,
        "' of a saved state holds no sizes");
  const auto number = [&](int i) { return static_cast<std::int64_t>(v[i]); };
  layer.basis.shape = {number(0), number(1)};
  layer.basis.directions = number(2);
  layer.basis.steps = number(3);
  layer.holds_residuals = number(4) != 0;
}

void put_small(const WarmStarts& warm_starts, const SharedSteps::State& shared_steps,
               const LayerBasesState& bases, Tensors& tensors) {
  for (const auto& [name, start] : warm_starts) {
    tensors["warm_start/" + name] = to_tensor(start.q).view({-1, start.cols});
  }
  for (const auto& [spec, codec] : shared_steps) {
    tensors["shared_step/" + spec] = to_tensor(codec.step);
    for (const auto& [name, group] : codec.groups) {
      tensors[concat("slots/", spec, "/", name)] = to_tensor(group);
    }
  }
  for (const auto& [name, layer] : bases) put_basis(name, layer, tensors);
}

[[noreturn]] void refuse(const std::string& name) {
  throw InvalidArgument(concat("a saved state has no tensor '", name,
                               "'; names begin with residual/, velocity/, momentum_residual/, "
                               "second_residual/, warm_start/, shared_step/, slots/ or basis/"));
}

void add_second(const std::string& name, std::string_view rest, const at::Tensor& tensor,
                SecondResidual::State& second) {
  SecondResidual::Range range;
  const char* const end = rest.data() + rest.size();
  const auto [stop, error] = std::from_chars(rest.data(), end, range.begin);
  check(error == std::errc{} && range.begin >= 0 && stop != end && *stop == '/' && stop + 1 != end,
        "'", name, "' of a saved state should be second_residual/BEGIN/PARAMETER");
  range.values = to_vector(name, tensor, 1);
  second[std::string(stop + 1, end)].push_back(std::move(range));
}

}  // namespace

Tensors to_tensors(const AveragerState& state) {
  Tensors tensors;
  put_large(
      state.residuals, state.momentum, state.second,
      [](const std::vector<float>& values) { return to_tensor(values); }, tensors);
  put_small(state.warm_starts, state.shared_steps, state.bases, tensors);
  return tensors;
}

Tensors tensors_in_place(const Residuals& residuals) {
  Tensors tensors;
  put_large(residuals.feedback.state(), residuals.momentum.state(), residuals.second.state(),
            tensor_in_place, tensors);
  put_small(residuals.warm_starts, residuals.shared_steps.state(), state_of(residuals.bases),
            tensors);
  return tensors;
}

AveragerState state_from_tensors(const std::map<std::string, at::Tensor>& tensors) {
  AveragerState state;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t slash = std::min(name.find('/'), name.size());
    const std::string kind = name.substr(0, slash);
    const std::string layer = name.substr(std::min(slash + 1, name.size()));
    if (layer.empty()) {
      refuse(name);
    } else if (kind == "residual") {
      state.residuals.emplace(layer, to_vector(name, tensor, 1));
    } else if (kind == "velocity") {
      state.momentum[layer].velocity = to_vector(name, tensor, 1);
    } else if (kind == "momentum_residual") {
      state.momentum[layer].residual = to_vector(name, tensor, 1);
    } else if (kind == "second_residual") {
      add_second(name, layer, tensor, state.second);
    } else if (kind == "warm_start") {
      WarmStart start{.q = to_vector(name, tensor, 2)};
      start.cols = tensor.size(1);
      state.warm_starts.emplace(layer, std::move(start));
    } else if (kind == "shared_step") {
      const std::vector<float> step = to_vector(name, tensor, 1);
      check(step.size() == 2, "'", name, "' of a saved state should have 2 elements, got ",
            step.size());
      std::ranges::copy(step, state.shared_steps[layer].step.begin());
    } else if (kind == "slots") {
      // A spec ends with a bracket and has none before a stroke.
      const std::size_t end = layer.find(")/");
      check(end != std::string::npos && end + 2 < layer.size(), "'", name,
            "' of a saved state should be slots/CODEC/PARAMETER");
      state.shared_steps[layer.substr(0, end + 1)].groups[layer.substr(end + 2)] =
          to_group(name, tensor);
    } else if (kind == "basis") {
      add_basis(name, layer, tensor, state.bases);
    } else {
      refuse(name);
    }
  }
  bases_of(state.bases);  // throws where parts are missing
  for (const auto& [name, layer] : state.momentum) {
    check(layer.velocity.size() == layer.residual.size(), "the saved velocity of '", name, "' has ",
          layer.velocity.size(), " elements and its residual ", layer.residual.size());
  }
  return state;
}

}  // namespace thinwire::comm
