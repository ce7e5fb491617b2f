#include "thinwire/torch_ext/adapter/adapter_switch.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <bit>
#include <cstring>

#include "thinwire/comm/wire/tensor_bridge.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/cuda/cuda_module.h"
#include "thinwire/compressors/peft/adapter_types.h"
#include "thinwire/torch_ext/adapter/adapter_state.h"
#include "thinwire/torch_ext/adapter/device_planes.h"
#include "thinwire/torch_ext/adapter/lora.h"

namespace thinwire {
namespace {

peft::TensorInfo info_of(const std::string& name, const at::Tensor& tensor) {
  return {name, safetensors_dtype(tensor), tensor.sizes().vec()};
}

std::string fingerprint_of(const NamedTensors& weights) {
  std::vector<peft::TensorInfo> infos;
  std::vector<at::Tensor> tensors;
  for (const auto& [name, tensor] : weights) {
    infos.push_back(info_of(name, tensor));
    tensors.push_back(tensor);
  }
  at::Tensor host;  // the one that is read
  return peft::fingerprint(infos, [&](std::size_t i) {
    host = tensors[i].cpu();
    return bytes_of(host);
  });
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

// The tensor's memory as bytes. Writing them is no change that torch counts, and inference tensors
// can be written too.
at::Tensor bytes_on_device(const at::Tensor& tensor) {
  return at::for_blob(const_cast<void*>(tensor.const_data_ptr()),
                      {static_cast<std::int64_t>(tensor.nbytes())})
      .options(at::TensorOptions(at::kByte).device(tensor.device()))
      .target_device(tensor.device())
      .make_tensor();
}

void copy_bytes(const at::Tensor& from, const at::Tensor& to) {
  if (to.nbytes() == 0) return;
  if (to.is_cpu()) {
    std::memcpy(to.mutable_data_ptr(), from.const_data_ptr(), to.nbytes());
  } else {
    bytes_on_device(to).copy_(bytes_on_device(from));
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
  // Otherwise scale * trits from `begin` on are added. `kept` holds the elements that they change;
  // in GPU memory the DevicePlanes do, where this is the change of a number.
  float scale = 0;
  std::int64_t begin = 0;
  std::vector<std::byte> kept;
  std::size_t on_device = 0;
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
  for (const auto& [name, tensor] : weights_) {
    check(tensor.defined() && (tensor.is_cpu() || tensor.is_cuda()) && tensor.is_contiguous(),
          "weight '", name, "' is not a contiguous tensor on the CPU or a CUDA device");
    const auto& [first, other] = *weights_.begin();
    check(tensor.device() == other.device(), "weight '", name, "' is on ", tensor.device(),
          ", weight '", first, "' on ", other.device(),
          "; experts are put on weights of one device");
    if (tensor.is_cuda()) CudaModule::get();
  }
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
  std::vector<DevicePlanes::Change> on_device;
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
      if (!change.weight.is_cpu()) {
        change.on_device = on_device.size();
        on_device.push_back({change.weight, change.scale, change.begin});
        staged.changes_.push_back(std::move(change));
        continue;
      }
      std::size_t kept = 0;
      for_each_set(staged.planes_.view(), change.begin, change.weight.numel(),
                   [&](std::int64_t) { ++kept; });
      change.kept.resize(kept * change.weight.element_size());
    } else {
      change.before = at::empty_like(change.weight);
      const at::Device device = change.weight.device();
      if (tensor.storage == peft::Storage::kValue) {
        change.values = tensor_of(tensor.info, file.dense_bytes(i)).to(device);
      } else {
        at::Tensor values = at::empty(change.weight.sizes(), at::kFloat);
        reader.read(i, 0,
                    {values.mutable_data_ptr<float>(), static_cast<std::size_t>(values.numel())});
        values = values.to(device);
        // The weight may carry an expert now: its bare values come from that one's log.
        at::Tensor base = at::full_like(values, tensor.base_constant);
        if (on_base) {
          base = change.weight.detach().clone();
          if (on_)
            for (const Change& old : on_->changes_)
              if (old.weight.is_same(change.weight)) undo(*on_, old, base);
        }
        change.values = (base.to(at::kFloat) + values).to(change.weight.scalar_type());
      }
    }
    staged.changes_.push_back(std::move(change));
  }
  if (!on_device.empty()) {
    staged.device_planes_ = std::make_unique<DevicePlanes>(staged.planes_.view(), on_device);
    staged.planes_ = {};
  }
  return staged;
}

void AdapterSwitch::undo(const Staged& expert, const Change& change, const at::Tensor& target) {
  if (change.before.defined()) return copy_bytes(change.before, target);
  if (!target.is_cpu()) return expert.device_planes_->take_off(change.on_device, target);
  auto* data = static_cast<std::byte*>(target.mutable_data_ptr());
  const std::size_t size = target.element_size();
  const std::byte* kept = change.kept.data();
  for_each_set(expert.planes_.view(), change.begin, target.numel(), [&](std::int64_t i) {
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
    if (change.values.defined()) {
      copy_bytes(weight, change.before);
      copy_bytes(change.values, weight);
      change.values.reset();
      continue;
    }
    if (!weight.is_cpu()) continue;  // all of them by one launch
    auto* data = static_cast<std::byte*>(weight.mutable_data_ptr());
    const std::size_t size = weight.element_size();
    std::byte* kept = change.kept.data();
    for_each_set(next->planes_.view(), change.begin, weight.numel(), [&](std::int64_t i) {
      std::memcpy(kept, data + static_cast<std::size_t>(i) * size, size);
      kept += size;
    });
    add_ternary(weight, change.scale, next->planes_.view(), change.begin);
  }
  if (next->device_planes_) next->device_planes_->put_on();
  current_ = next->id_;
  on_ = std::move(next);
}

void AdapterSwitch::swap(const peft::PackedFile& file) {
  commit(stage(file));
}

void AdapterSwitch::remove() {
  if (!on_) return;
  check_untouched();
  for (const Change& change : on_->changes_) {
    if (change.before.defined() || change.weight.is_cpu())
      undo(*on_, change, change.weight.detach());
  }
  if (on_->device_planes_) on_->device_planes_->take_off();
  on_.reset();
  current_.clear();
}

}  // namespace thinwire
