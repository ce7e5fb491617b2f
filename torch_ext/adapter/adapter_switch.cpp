#include "thinwire/torch_ext/adapter/adapter_switch.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <bit>
#include <cstring>

#include "thinwire/comm/wire/tensor_bridge.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/adapter_types.h"
#include "thinwire/torch_ext/adapter/adapter_state.h"
#include "thinwire/torch_ext/adapter/lora.h"

namespace thinwire {
namespace {

peft::TensorInfo info_of(const std::string& name, const at::Tensor& tensor) {
  return {name, safetensors_dtype(tensor), tensor.sizes().vec()};
}

std::string fingerprint_of(const NamedTensors& weights) {
  std::vector<peft::TensorInfo> infos;
  std::vector<std::span<const std::byte>> bytes;
  for (const auto& [name, tensor] : weights) {
    infos.push_back(info_of(name, tensor));
    bytes.push_back(bytes_of(tensor));
  }
  return peft::fingerprint(infos, [&](std::size_t i) { return bytes[i]; });
}

// Calls visit(i) for every set entry i in [0, numel) of the planes from `begin` on, in order.
template <typename Visit>
void for_each_set(peft::PlanesView planes, std::int64_t begin, std::int64_t numel, Visit visit) {
  const std::int64_t end = begin + numel;
  for (std::int64_t word = begin / 64; 64 * word < end; ++word) {
    std::uint64_t bits = planes.mask[static_cast<std::size_t>(word)];
    for (; bits != 0; bits &= bits - 1) {
      const std::int64_t at = 64 * word + std::countr_zero(bits);
      if (at >= begin && at < end) visit(at - begin);
    }
  }
}

}  // namespace

void add_ternary(const at::Tensor& target, float scale, peft::PlanesView planes,
                 std::int64_t begin) {
  peft::axpy(scale, planes, begin, comm::view_of(target));
}

// What an expert does to one tensor, and what it takes to undo it.
struct AdapterSwitch::Change {
  std::string name;
  at::Tensor weight;
  std::optional<Identity> seen;  // of the weight when the change was staged
  at::Tensor values;             // defined: they replace the weight, which is kept in `before`
  at::Tensor before;
  // Otherwise scale * trits from `begin` on are added; `kept` holds the elements that they change.
  float scale = 0;
  std::int64_t begin = 0;
  std::vector<std::byte> kept;
};

AdapterSwitch::Identity AdapterSwitch::identity_of(const at::Tensor& weight) {
  return {weight.scalar_type(), weight.sizes().vec(), weight.const_data_ptr(),
          weight.is_inference() ? 0 : weight._version(), weight.storage().getWeakStorageImpl()};
}

void AdapterSwitch::check_untouched(const Staged& staged, const char* advice) {
  for (const Change& change : staged.changes_)
    check(identity_of(change.weight) == change.seen, "weight '", change.name, "' is ",
          change.weight.scalar_type(), " ", change.weight.sizes(), " and was ", change.seen->dtype,
          " ", at::IntArrayRef(change.seen->sizes), ", or holds other values, since the expert '",
          staged.id_, "' ", advice);
}

void AdapterSwitch::check_untouched() const {
  if (on_)
    check_untouched(*on_,
                    "was put on; it cannot be taken off: load the bare weights, and make another "
                    "AdapterSwitch");
}

AdapterSwitch::Staged::Staged() = default;
AdapterSwitch::Staged::Staged(Staged&&) noexcept = default;
AdapterSwitch::Staged& AdapterSwitch::Staged::operator=(Staged&&) noexcept = default;
AdapterSwitch::Staged::~Staged() = default;

AdapterSwitch::AdapterSwitch(NamedTensors weights, std::string adapter_config)
    : weights_(std::move(weights)), config_(std::move(adapter_config)) {
  for (const auto& [name, tensor] : weights_)
    check(tensor.defined() && tensor.is_cpu() && tensor.is_contiguous(), "weight '", name,
          "' is not a contiguous tensor on the CPU");
}
AdapterSwitch::AdapterSwitch(const Lora& lora) : AdapterSwitch(lora.factors(), lora.config()) {
  check(!lora.merged(), "unmerge the Lora before experts are put on its factors");
}
AdapterSwitch::~AdapterSwitch() = default;
AdapterSwitch::AdapterSwitch(AdapterSwitch&&) noexcept = default;

void AdapterSwitch::check_config(const peft::PackedFile& file) const {
  const std::string where = file.path().string();
  if (!file.manifest().adapter_config) return;
  const auto theirs = peft::AdapterConfig::parse(*file.manifest().adapter_config, where);
  check(!config_.empty() || !theirs.scales(), where, " is an adapter with ", theirs.scaling(),
        "; give AdapterSwitch the Lora, or the configuration that the weights are used with");
  if (config_.empty()) return;
  const auto ours = peft::AdapterConfig::parse(config_, "the configuration of the weights");
  check(scale_between(theirs, ours, where) == 1, where, " is an adapter with ", theirs.scaling(),
        ", expected ", ours.scaling());
}

AdapterSwitch::Staged AdapterSwitch::stage(const peft::PackedFile& file) const {
  const peft::Manifest& manifest = file.manifest();
  const std::string where = file.path().string();
  check_untouched();
  check(manifest.parent.empty(), where, " continues the file '", manifest.parent,
        "'; only the first of a chain can be put on bare weights");
  check_config(file);
  for (const peft::PackedTensor& tensor : manifest.tensors) {
    const auto found = weights_.find(tensor.info.name);
    check(found != weights_.end(), where, " holds '", tensor.info.name,
          "', which the weights lack");
    check(info_of(found->first, found->second).dtype == tensor.info.dtype &&
              found->second.sizes() == at::IntArrayRef(tensor.info.shape),
          "'", tensor.info.name, "' is ", tensor.info.dtype, " ",
          at::IntArrayRef(tensor.info.shape), " in ", where, ", the weight is ",
          safetensors_dtype(found->second), " ", found->second.sizes());
  }
  if (manifest.tensors.size() != weights_.size())
    for (const auto& [name, tensor] : weights_)
      check(std::any_of(manifest.tensors.begin(), manifest.tensors.end(),
                        [&name = name](const auto& t) { return t.info.name == name; }),
            where, " lacks the weight '", name, "'");
  const bool on_base = !manifest.base_fingerprint.empty();
  if (on_base) {
    // While nothing is on, the weights may have been changed: by training, or by loading others.
    if (current_.empty() || base_fingerprint_.empty()) {
      check(current_.empty(), where, " needs its base, but the expert '", current_,
            "' is on the weights; remove() it first");
      base_fingerprint_ = fingerprint_of(weights_);
    }
    check(manifest.base_fingerprint == base_fingerprint_,
          "wrong base: the weights have the "
          "fingerprint ",
          base_fingerprint_, ", ", where, " was packed against ", manifest.base_fingerprint);
  }

  Staged staged;
  staged.id_ = manifest.id;
  if (on_base) staged.planes_ = file.planes();
  peft::DeltaReader reader(file);
  for (std::size_t i = 0; i < manifest.tensors.size(); ++i) {
    const peft::PackedTensor& tensor = manifest.tensors[i];
    Change change;
    change.name = tensor.info.name;
    change.weight = weights_.at(tensor.info.name);
    change.seen = identity_of(change.weight);
    if (on_base && tensor.storage == peft::Storage::kTernary) {
      check(change.weight.scalar_type() != at::kDouble, "'", tensor.info.name,
            "' is float64; experts are put on float32, float16 and bfloat16 weights");
      change.scale = manifest.parts[tensor.part].scale;
      change.begin = tensor.offset;
      std::size_t kept = 0;
      for_each_set(staged.planes_.view(), change.begin, change.weight.numel(),
                   [&](std::int64_t) { ++kept; });
      change.kept.resize(kept * change.weight.element_size());
    } else {
      change.before = at::empty_like(change.weight);
      if (tensor.storage == peft::Storage::kValue) {
        change.values = at::empty_like(change.weight);
        const auto bytes = file.dense_bytes(i);
        if (!bytes.empty())
          std::memcpy(change.values.mutable_data_ptr(), bytes.data(), bytes.size());
      } else {
        at::Tensor values = at::empty(change.weight.sizes(), at::kFloat);
        reader.read(i, 0,
                    {values.mutable_data_ptr<float>(), static_cast<std::size_t>(values.numel())});
        // The weight may carry an expert now: its bare values come from that one's log.
        at::Tensor base = at::full_like(values, tensor.base_constant);
        if (on_base) {
          base = change.weight.detach().clone();
          if (on_)
            for (const Change& old : on_->changes_)
              if (old.weight.is_same(change.weight)) undo(old, on_->planes_.view(), base);
        }
        change.values = (base.to(at::kFloat) + values).to(change.weight.scalar_type());
      }
    }
    staged.changes_.push_back(std::move(change));
  }
  return staged;
}

void AdapterSwitch::undo(const Change& change, peft::PlanesView planes, const at::Tensor& target) {
  auto* data = static_cast<std::byte*>(target.mutable_data_ptr());
  if (change.before.defined()) {
    if (target.nbytes() > 0) std::memcpy(data, change.before.const_data_ptr(), target.nbytes());
    return;
  }
  const std::size_t size = target.element_size();
  const std::byte* kept = change.kept.data();
  for_each_set(planes, change.begin, target.numel(), [&](std::int64_t i) {
    std::memcpy(data + static_cast<std::size_t>(i) * size, kept, size);
    kept += size;
  });
}

void AdapterSwitch::commit(Staged staged) {
  check_untouched(staged, "was staged; stage it again");
  remove();
  auto next = std::make_unique<Staged>(std::move(staged));
  for (Change& change : next->changes_) {
    const at::Tensor weight = change.weight.detach();
    auto* data = static_cast<std::byte*>(weight.mutable_data_ptr());
    if (change.values.defined()) {
      if (weight.nbytes() > 0) {
        std::memcpy(change.before.mutable_data_ptr(), data, weight.nbytes());
        std::memcpy(data, change.values.const_data_ptr(), weight.nbytes());
      }
      change.values.reset();
      continue;
    }
    const std::size_t size = weight.element_size();
    std::byte* kept = change.kept.data();
    for_each_set(next->planes_.view(), change.begin, weight.numel(), [&](std::int64_t i) {
      std::memcpy(kept, data + static_cast<std::size_t>(i) * size, size);
      kept += size;
    });
    add_ternary(weight, change.scale, next->planes_.view(), change.begin);
  }
  current_ = next->id_;
  on_ = std::move(next);
}

void AdapterSwitch::swap(const peft::PackedFile& file) {
  commit(stage(file));
}

void AdapterSwitch::remove() {
  if (!on_) return;
  check_untouched();
  for (const Change& change : on_->changes_)
    undo(change, on_->planes_.view(), change.weight.detach());
  on_.reset();
  current_.clear();
}

}  // namespace thinwire
