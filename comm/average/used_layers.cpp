#include "thinwire/comm/average/used_layers.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <span>

#include "thinwire/comm/average/bucket_layout.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// All bits but the sign's: minus zero is zero, NaN is not.
template <typename Word>
bool any_bits(const at::Tensor& values) {
  constexpr Word kMagnitude = static_cast<Word>(~Word{0}) >> 1;
  const std::span words(static_cast<const Word*>(values.const_data_ptr()),
                        static_cast<std::size_t>(values.numel()));
  return std::ranges::any_of(words, [](Word word) { return (word & kMagnitude) != 0; });
}

bool has_gradient(const at::Tensor& values) {
  // Waits for the device.
  if (!values.is_cpu()) return values.ne(0).any().item<bool>();
  switch (values.element_size()) {
    case sizeof(std::uint16_t):
      return any_bits<std::uint16_t>(values);
    case sizeof(std::uint32_t):
      return any_bits<std::uint32_t>(values);
    default:
      THINWIRE_ASSERT(values.element_size() == sizeof(std::uint64_t));
      return any_bits<std::uint64_t>(values);
  }
}

}  // namespace

std::vector<bool> layers_in_use(c10d::ProcessGroup& group, const Bucket& bucket,
                                std::uint64_t sequence) {
  const auto count = static_cast<std::int64_t>(bucket.layers.size());
  at::Tensor flags = at::zeros({count}, at::kByte);
  auto* flag = flags.mutable_data_ptr<std::uint8_t>();
  for (std::size_t i = 0; i < bucket.layers.size(); ++i) {
    flag[i] = bucket.layers[i].in_use || has_gradient(gradient_of(bucket, i)) ? 1 : 0;
  }
  if (group.getSize() > 1 && count > 0) {
    std::vector<at::Tensor> tensors = {flags};
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::MAX;
    wait(group, group.allreduce(tensors, options), "agreement on the layers in use", sequence);
  }
  std::vector<bool> used;
  for (std::int64_t i = 0; i < count; ++i) used.push_back(flag[i] != 0);
  return used;
}

}  // namespace thinwire::comm
