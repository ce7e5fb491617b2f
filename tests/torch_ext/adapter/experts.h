// Weights and packed experts for them.
#pragma once

#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>

#include <ATen/ATen.h>

#include "thinwire/comm/state/named_tensors.h"
#include "thinwire/compressors/peft/merge.h"
#include "thinwire/compressors/peft/pack.h"
#include "thinwire/compressors/peft/safetensors.h"
#include "thinwire/tests/compressors/peft/peft_fixtures.h"

namespace thinwire::testing {

using peft::test::TemporaryDir;
using Weights = std::map<std::string, at::Tensor>;

inline at::Tensor random(at::IntArrayRef shape, std::uint64_t seed,
                         at::ScalarType dtype = at::kFloat) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::kFloat).to(dtype);
}

inline Weights base_weights() {
  return {{"a", random({300, 70}, 1)},
          {"b", random({129}, 2, at::kBFloat16)},
          {"c", random({40, 7}, 3, at::kHalf)},
          {"steps", at::arange(5)}};
}

inline Weights copy_of(const Weights& weights) {
  Weights copy;
  for (const auto& [name, tensor] : weights) copy[name] = tensor.clone();
  return copy;
}

inline bool same_bits(const Weights& x, const Weights& y) {
  for (const auto& [name, tensor] : x)
    if (std::memcmp(tensor.const_data_ptr(), y.at(name).const_data_ptr(), tensor.nbytes()) != 0)
      return false;
  return x.size() == y.size();
}

inline void save_weights(const std::filesystem::path& path, const Weights& weights) {
  std::vector<peft::TensorInfo> layout;
  for (const auto& [name, tensor] : weights)
    layout.push_back({name, safetensors_dtype(tensor), tensor.sizes().vec()});
  peft::SafetensorsWriter writer(path, layout, {}, true);
  for (const auto& [name, tensor] : weights)
    writer.write(std::as_bytes(
        std::span(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes())));
  writer.commit();
}

inline Weights load_weights(const std::filesystem::path& path) {
  const peft::SafetensorsFile file(path);
  Weights weights;
  for (const auto& info : file.tensors()) {
    weights[info.name] = at::empty(info.shape, scalar_type_of(info.dtype));
    std::memcpy(weights[info.name].mutable_data_ptr(), file.bytes(info.name).data(), info.bytes());
  }
  return weights;
}

// base.safetensors and packed deltas of two experts against it.
struct Experts {
  explicit Experts(const TemporaryDir& dir) {
    save_weights(dir / "base", base_weights());
    for (const int expert : {1, 2}) {
      Weights tuned = base_weights();
      for (auto& [name, tensor] : tuned)
        if (tensor.is_floating_point())
          tensor.add_(random(tensor.sizes(), static_cast<std::uint64_t>(10 * expert))
                          .to(tensor.scalar_type()),
                      0.1);
      tuned["steps"].add_(expert);
      save_weights(dir / "tuned", tuned);
      peft::pack(peft::open_pair(dir / "tuned", dir / "base"),
                 dir / ("expert" + std::to_string(expert)), {.density = 0.1});
    }
  }
};

// Of two more experts against base.safetensors, "merged": its values are dense.
inline void merge_two(const TemporaryDir& dir) {
  // Weights that are kept by value have to agree before files can be merged.
  for (const int expert : {1, 2}) {
    Weights other = base_weights();
    for (auto& [name, tensor] : other)
      if (tensor.is_floating_point())
        tensor.add_(random(tensor.sizes(), static_cast<std::uint64_t>(20 * expert))
                        .to(tensor.scalar_type()));
    save_weights(dir / "tuned", other);
    peft::pack(peft::open_pair(dir / "tuned", dir / "base"),
               dir / ("merge" + std::to_string(expert)), {.density = 0.1});
  }
  const peft::PackedFile x(dir / "merge1"), y(dir / "merge2");
  peft::merge_packed(peft::MergeMethod::kTies, {&x, &y}, {}, dir / "merged", false);
}

}  // namespace thinwire::testing
