// Once warm, averaging takes no memory that grows with the bucket: what it needs it keeps.
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

#include "reduction_cases.h"
#include "thinwire/tests/support/counting_group.h"

namespace {

// Bytes that this thread took from the heap, and gave back or not, since it began to count.
thread_local bool counting = false;
thread_local std::size_t taken = 0;

void* take(std::size_t size, std::size_t alignment) {
  if (counting) taken += size;
  void* memory =
      alignment <= alignof(std::max_align_t)
          ? std::malloc(size)
          : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t size) {
  return take(size, 1);
}
void* operator new[](std::size_t size) {
  return take(size, 1);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return take(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return take(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace thinwire::comm {
namespace {

using testing::all_reductions;
using testing::random_bucket;
using testing::RankContext;
using testing::ReductionCase;
using testing::run_ranks;
using testing::uniform_plan;

// What tensors take does not come from operator new.
struct TensorMemory final : c10::MemoryReportingInfoBase {
  void reportMemoryUsage(void*, std::int64_t size, std::size_t, std::size_t, c10::Device) override {
    if (counting && size > 0) taken += static_cast<std::size_t>(size);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

template <typename Call>
auto uncounted(const Call& call) {
  const bool before = std::exchange(counting, false);
  auto work = call();
  counting = before;
  return work;
}

// What the backend takes is its own: Gloo's all_gather, for one, receives into a copy.
class UncountedBackend final : public testing::CountingBackend {
 public:
  using CountingBackend::CountingBackend;

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override {
    return uncounted([&] { return CountingBackend::allreduce(tensors, options); });
  }
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& options) override {
    return uncounted([&] { return CountingBackend::_allgather_base(output, input, options); });
  }
  c10::intrusive_ptr<c10d::Work> alltoall_base(at::Tensor& output, at::Tensor& input,
                                               std::vector<std::int64_t>& output_sizes,
                                               std::vector<std::int64_t>& input_sizes,
                                               const c10d::AllToAllOptions& options) override {
    return uncounted([&] {
      return CountingBackend::alltoall_base(output, input, output_sizes, input_sizes, options);
    });
  }
};

// The most that any rank takes for one bucket of so many rows.
std::size_t taken_warm(const ReductionCase& c, std::int64_t rows) {
  constexpr int kWarmUp = 12, kSteps = 3;
  std::mutex mutex;
  std::size_t most = 0;
  run_ranks(c.world, [&](RankContext& ctx) {
    const testing::LayerShapes shapes = {{"w", {rows, 64}}, {"v", {rows}}};
    AveragerOptions options = c.options();
    options.chunk_bytes = std::size_t{1} << 20;
    options.check_replicas_every = 0;
    const auto group = testing::counting_group<UncountedBackend>(ctx);
    BucketAverager averager(group, options);
    const Plan plan = uniform_plan(shapes, c.spec);
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE,
                                    std::make_shared<TensorMemory>());
    for (int step = 0; step < kWarmUp + kSteps; ++step) {
      Bucket bucket = random_bucket(shapes, static_cast<std::uint64_t>(step), ctx.rank);
      taken = 0;
      counting = step >= kWarmUp;
      averager.average(bucket, plan, step);
      counting = false;
      const std::lock_guard lock(mutex);
      most = std::max(most, taken);
    }
  });
  return most;
}

class WarmAllocations : public ::testing::TestWithParam<ReductionCase> {};

TEST_P(WarmAllocations, DoNotGrowWithTheBucket) {
  // Both have as many classes of spectral's as there may be: a step with a new basis deals them out
  // anew. And both are a single chunk, whatever the codec.
  constexpr std::int64_t kSmall = 512, kLarge = 2048;
  const std::size_t small = taken_warm(GetParam(), kSmall), large = taken_warm(GetParam(), kLarge);
  RecordProperty("bytes", static_cast<int>(large));
  EXPECT_LT(large, 32768u) << "the bucket has " << kLarge * 65 * 4 << " bytes";
  EXPECT_LE(large, small + 1024) << "4 times the elements";
}

INSTANTIATE_TEST_SUITE_P(All, WarmAllocations, ::testing::ValuesIn([] {
                           std::vector<ReductionCase> cases = all_reductions();
                           // A new basis is a new layout of the bucket: of those steps the warm
                           // ones must be free.
                           std::erase_if(cases, [](const ReductionCase& c) {
                             return c.world != 3 || std::string_view(c.spec).find("every=2") !=
                                                        std::string_view::npos;
                           });
                           return cases;
                         }()));

}  // namespace
}  // namespace thinwire::comm
