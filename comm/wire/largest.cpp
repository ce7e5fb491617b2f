#include "thinwire/comm/wire/largest.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <algorithm>
#include <vector>

#include "thinwire/comm/failure/guard.h"

namespace thinwire::comm {

std::size_t take_largest(c10d::ProcessGroup& group, std::span<std::int64_t> numbers,
                         const char* operation, std::uint64_t sequence) {
  const auto world = static_cast<std::size_t>(group.getSize());
  if (world == 1 || numbers.empty()) return 0;
  // A tensor of its own: where another rank fails, the wait ends before the backend has finished
  // with the memory.
  std::vector<at::Tensor> tensors = {
      at::empty({static_cast<std::int64_t>(numbers.size())}, at::kLong)};
  std::ranges::copy(numbers, tensors[0].mutable_data_ptr<std::int64_t>());
  c10d::AllreduceOptions options;
  options.reduceOp = c10d::ReduceOp::MAX;
  run_collective(group, operation, sequence, [&] { return group.allreduce(tensors, options); });
  std::copy_n(tensors[0].const_data_ptr<std::int64_t>(), numbers.size(), numbers.begin());
  return 2 * numbers.size_bytes() * (world - 1) / world;
}

}  // namespace thinwire::comm
