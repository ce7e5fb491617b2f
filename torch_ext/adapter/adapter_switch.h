// Putting experts on a model in memory, one at a time: staged, switched at once, taken off again
// bit for bit.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "thinwire/comm/state/named_tensors.h"
#include "thinwire/compressors/peft/container.h"

namespace thinwire {

class DevicePlanes;
class Lora;

// target += scale * trits [begin, begin + numel), in one pass over the planes; float32, float16
// (one rounding) or bfloat16, contiguous, on the CPU, else InvalidArgument. Entries whose trit is
// zero are not touched.
void add_ternary(const at::Tensor& target, float scale, peft::PlanesView planes,
                 std::int64_t begin = 0);

// The weights that experts are put on. Packed files of both kinds are taken: adapters (base 0 or
// 1), whose tensors replace the weights, and deltas against a base file, which are added to the
// weights and need them to be that base. To undo a ternary delta only the entries that it changed
// are kept (their bits, and the planes), for others a copy of the weights.
//
// Weights in GPU memory get the bits of those on the CPU. What an expert does, and what it takes to
// undo it, lie in the memory of their device, so that commit() and remove() wait for nothing: they
// queue their work on the current stream, which has to be the same in all calls.
//
// Not thread-safe. While an expert is on, the weights must not be changed by others: trained,
// loaded into or converted. What torch's own operations have changed is noticed.
class AdapterSwitch {
 public:
  // `weights` by their names in the packed files; contiguous, all on the CPU or on one CUDA device,
  // no expert on them yet.
  // `adapter_config`: the configuration that they are used with (Lora::config()), where they are an
  // adapter's: factors mean another change with another lora_alpha.
  explicit AdapterSwitch(NamedTensors weights, std::string adapter_config = {});
  // The factors of a Lora, which must not be merged while experts are switched.
  explicit AdapterSwitch(const Lora& lora);
  ~AdapterSwitch();
  AdapterSwitch(AdapterSwitch&&) noexcept;

  // An expert that is decoded, found to fit, and has all the memory that it needs.
  class Staged;

  // Changes nothing. Throws FileError for a damaged file; InvalidArgument for tensors that the file
  // or the weights lack, other dtypes or shapes, another base, a file that continues another, an
  // adapter of another type, scale (lora_alpha, use_rslora) or base model than the weights', and
  // where remove() would throw.
  Staged stage(const peft::PackedFile& file) const;
  // Takes off what is on and puts the staged expert on. Throws InvalidArgument, and changes
  // nothing, where a weight has been changed since stage().
  void commit(Staged staged);
  // stage() and commit().
  void swap(const peft::PackedFile& file);
  // Back to the very bits that the constructor found. Throws InvalidArgument that names the weight,
  // and changes nothing, where one has been changed while the expert was on: what there is to
  // restore belongs to other values.
  void remove();

  // id of the expert that is on, empty for none.
  const std::string& current() const { return current_; }

 private:
  struct Change;
  // What tells whether others have changed a weight. Experts write past torch's count of versions.
  struct Identity {
    at::ScalarType dtype = at::kFloat;
    std::vector<std::int64_t> sizes;
    const void* data = nullptr;
    std::int64_t version = 0;
    // Held weakly: no other storage takes its place while this is kept, as one of the same size
    // that the allocator gives next may take its address.
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    bool operator==(const Identity&) const = default;
  };
  static Identity identity_of(const at::Tensor& weight);
  static void check_untouched(const Staged& staged, const char* advice);
  void check_untouched() const;
  // Writes what `target` was before the change, one of the expert's.
  static void undo(const Staged& expert, const Change& change, const at::Tensor& target);

  void check_config(const peft::PackedFile& file) const;

  NamedTensors weights_;
  std::string config_;
  mutable std::string base_fingerprint_;  // of the bare weights, computed where it is needed
  std::string current_;
  std::unique_ptr<Staged> on_;
};

class AdapterSwitch::Staged {
 public:
  Staged(Staged&&) noexcept;
  Staged& operator=(Staged&&) noexcept;
  ~Staged();
  const std::string& id() const { return id_; }

 private:
  friend class AdapterSwitch;
  Staged();
  std::string id_;
  peft::TernaryPlanes planes_;                   // of weights on the CPU
  std::unique_ptr<DevicePlanes> device_planes_;  // of weights in GPU memory, if there are trits
  std::vector<Change> changes_;
};

}  // namespace thinwire
