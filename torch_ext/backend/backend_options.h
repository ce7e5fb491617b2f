// What a process group that compresses is told, and what follows from it for one call.
#pragma once

#include <cstdint>
#include <string>

#include "thinwire/comm/average/plan.h"

namespace thinwire {

// Which calls of a process group go through a codec. Must be equal on all its ranks. The specs are
// those of a gradient's layer, parse_layer_setting().
struct BackendOptions {
  // all_reduce and reduce_scatter, of sums and means. Empty: THINWIRE_COMPRESSION, else none.
  std::string compression = {};
  // Kept apart, because what these carry is used as it is and not added up: weights, activations.
  std::string all_gather = "none";
  std::string all_to_all = "none";
  // Tensors of fewer elements travel as they are.
  std::int64_t min_numel = 1024;
  // Source of all randomness of the codecs.
  std::uint64_t seed = 0;
};

// The options with their codecs made.
struct BackendSettings {
  comm::LayerSetting reduce, all_gather, all_to_all;
  std::int64_t min_numel = 0;
  std::uint64_t seed = 0;

  bool compresses() const { return reduce.codec || all_gather.codec || all_to_all.codec; }
  // What the ranks compare, a line each.
  std::string text() const;
};

// Throws InvalidArgument for a bad spec, for a policy in place of a codec, or for an all_to_all
// whose codec loses what only feedback gives back.
BackendSettings make_settings(const BackendOptions& options);

// Note [Feedback keys]
// A residual belongs to one tensor of the program, and a collective does not say which tensor it is
// given: the same memory may hold one thing now and another later. So feedback is kept for calls
// that the program has named, with a FeedbackKey in C++ and thinwire.feedback_key() in Python, and
// for no others. Without a key
//   - codecs that send every element (quantize, cast, terngrad) are used without feedback;
//   - codecs that leave most of a tensor out until feedback brings it (topk, randomk, ternary,
//     onebit, powersgd) are not used: the call is exact, and counted as such. `error_feedback=off`
//     in the spec uses them all the same.
// DistributedDataParallel and FSDP need no keys of the program's own: the hook that
// thinwire.compress() registers knows the parameters' names, and so do the collectives that
// thinwire.fsdp.compress() gives to FSDP's parameter groups.

// Names the calls that the present thread makes during its life. Nests; the innermost counts. All
// ranks must give a call the same name, and a name always to tensors of the same size.
class FeedbackKey {
 public:
  explicit FeedbackKey(std::string name);
  ~FeedbackKey();
  FeedbackKey(const FeedbackKey&) = delete;
  FeedbackKey& operator=(const FeedbackKey&) = delete;

  // Empty where there is none.
  static const std::string& current();

 private:
  std::string outer_;
};

// Whether calls without a key may use the setting's codec; see Note [Feedback keys].
bool works_without_key(const comm::LayerSetting& setting);

}  // namespace thinwire
