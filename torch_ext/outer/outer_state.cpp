#include "thinwire/torch_ext/outer/outer_state.h"

#include <charconv>
#include <cstring>
#include <span>

#include <ATen/ops/empty.h>

#include "thinwire/comm/average/state_tensors.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/safetensors.h"

namespace thinwire {
namespace {

constexpr const char* kFormat = "thinwire-outer-state";
constexpr std::string_view kCarried = "averager/";

at::Tensor tensor_of(const peft::SafetensorsFile& file, const std::string& name) {
  const peft::TensorInfo* info = file.find(name);
  if (info == nullptr || info->dtype != "F32")
    throw FileError(concat(file.path().string(), ": the float32 tensor '", name, "' is missing"));
  const auto bytes = file.bytes(name);
  at::Tensor tensor = at::empty(info->shape, at::kFloat);
  std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

std::vector<float> floats_of(const peft::SafetensorsFile& file, const std::string& name) {
  const at::Tensor tensor = tensor_of(file, name);
  const auto* values = tensor.const_data_ptr<float>();
  return {values, values + tensor.numel()};
}

comm::AveragerState averager_state_of(const peft::SafetensorsFile& file) {
  std::map<std::string, at::Tensor> carried;
  for (const peft::TensorInfo& info : file.tensors()) {
    if (info.name.starts_with(kCarried))
      carried.emplace(info.name.substr(kCarried.size()), tensor_of(file, info.name));
  }
  try {
    return comm::state_from_tensors(carried);
  } catch (const InvalidArgument& error) {
    throw FileError(concat(file.path().string(), ": ", error.what()));
  }
}

std::int64_t integer_of(const peft::SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  std::int64_t value = -1;
  if (found != file.metadata().end())
    std::from_chars(found->second.data(), found->second.data() + found->second.size(), value);
  if (value < 0)
    throw FileError(
        concat(file.path().string(), ": '", key, "' is not a number of steps or ranks"));
  return value;
}

}  // namespace

void save_outer_state(const OuterState& state, const std::filesystem::path& path) {
  std::vector<peft::TensorInfo> tensors;
  std::vector<std::span<const float>> values;
  const auto add = [&](std::string name, std::vector<std::int64_t> shape, const float* data) {
    tensors.push_back({std::move(name), "F32", std::move(shape)});
    values.emplace_back(data, tensors.back().bytes() / sizeof(float));
  };
  const auto numel = static_cast<std::int64_t>(state.synchronised.size());
  add("synchronised", {numel}, state.synchronised.data());
  add("momentum", {numel}, state.momentum.data());
  const auto carried = comm::to_tensors(state.averager);
  for (const auto& [name, tensor] : carried)
    add(concat(kCarried, name), tensor.sizes().vec(), tensor.const_data_ptr<float>());
  peft::SafetensorsWriter writer(path, tensors,
                                 {{"format", kFormat},
                                  {"layout", state.layout},
                                  {"world_size", std::to_string(state.world_size)},
                                  {"inner_steps", std::to_string(state.inner_steps)},
                                  {"outer_steps", std::to_string(state.outer_steps)},
                                  {"skipped_steps", std::to_string(state.skipped_steps)}},
                                 /*overwrite=*/true);
  for (const auto& part : values) writer.write(std::as_bytes(part));
  writer.commit();
}

OuterState load_outer_state(const std::filesystem::path& path) {
  const peft::SafetensorsFile file(path);
  const auto format = file.metadata().find("format");
  if (format == file.metadata().end() || format->second != kFormat ||
      !file.metadata().contains("layout"))
    throw FileError(concat(path.string(), " is not the state of an outer optimizer"));
  OuterState state;
  state.layout = file.metadata().at("layout");
  state.world_size = static_cast<int>(integer_of(file, "world_size"));
  state.inner_steps = integer_of(file, "inner_steps");
  state.outer_steps = integer_of(file, "outer_steps");
  state.skipped_steps = integer_of(file, "skipped_steps");
  state.synchronised = floats_of(file, "synchronised");
  state.momentum = floats_of(file, "momentum");
  state.averager = averager_state_of(file);
  return state;
}

OuterState merge_states(const std::vector<OuterState>& states, int world_size) {
  check(world_size > 0, "a job has at least one rank, got ", world_size);
  check(!states.empty(), "there are no states to merge");
  OuterState merged = states.front();
  check(static_cast<std::size_t>(merged.world_size) == states.size(), "the states of all ",
        merged.world_size, " ranks are needed, got ", states.size());
  std::vector<comm::AveragerState> carried = {merged.averager};
  for (std::size_t rank = 1; rank < states.size(); ++rank) {
    const OuterState& other = states[rank];
    check(other.layout == merged.layout && other.world_size == merged.world_size &&
              other.outer_steps == merged.outer_steps && other.synchronised == merged.synchronised,
          "state ", rank, " (outer step ", other.outer_steps, " of ", other.world_size,
          " ranks) is not of the same model and step as state 0 (outer step ", merged.outer_steps,
          " of ", merged.world_size, " ranks)");
    carried.push_back(other.averager);
  }
  merged.averager = comm::merge_states(carried);
  merged.world_size = world_size;
  return merged;
}

}  // namespace thinwire
