// The real Reducer over the real ProcessGroupNCCL, on fake devices: the CPU's numbers under every
// schedule, by its own all_reduce and by a hook on a side stream as thinwire's; and each way in
// which such a hook can be wrong is found.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include "thinwire/tests/gpu/every_schedule.h"
#include "thinwire/tests/gpu/reducer_net.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/ranks/ranks.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using testing::GpuRanks;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::NetTraining;
using testing::ReducerNet;

enum class Mistake {
  kNone,
  kSideDoesNotWait,      // for the gradients
  kNoWaitForCollective,  // its result is read at once
  kWrongStream,          // the future's event is the main stream's
  kMainWaits,            // right numbers, and nothing overlaps
};

void* handle(const c10::Stream& stream) {
  return c10::cuda::CUDAStream(stream).stream();
}

// Gathers all ranks' buckets on a side stream and adds them there.
class SideStreamHook final : public c10d::CommHookInterface {
 public:
  // `overlapped` becomes whether the main stream is free while the hook's work runs.
  SideStreamHook(c10::intrusive_ptr<c10d::ProcessGroup> group, Mistake mistake, bool& overlapped)
      : group_(std::move(group)), mistake_(mistake), overlapped_(overlapped) {}

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
    const fake_gpu::NoHostSync nothing_waits;
    at::Tensor buffer = bucket.getBuffer();
    fake_gpu::name_memory(buffer.data_ptr(), buffer.nbytes(), "bucket");
    const c10::Stream main = c10::cuda::getCurrentCUDAStream();
    const c10::Stream side = c10::cuda::getStreamFromPool();
    fake_gpu::name_stream(handle(side), "side");
    if (mistake_ != Mistake::kSideDoesNotWait) order(side, main);
    c10::StreamGuard guard(side);
    buffer.mul_(1.0 / group_->getSize());
    at::Tensor all = at::empty({group_->getSize(), buffer.numel()}, buffer.options());
    auto work = group_->_allgather_base(all, buffer);
    if (mistake_ != Mistake::kNoWaitForCollective) work->wait();
    at::Tensor sum = all[0];
    for (int rank = 1; rank < group_->getSize(); ++rank) sum = sum + all[rank];
    buffer.copy_(sum);
    c10::cuda::CUDACachingAllocator::recordStream(buffer.storage().data_ptr(),
                                                  c10::cuda::CUDAStream(side));
    if (mistake_ == Mistake::kMainWaits) order(main, side);
    overlapped_ = !fake_gpu::waits_for(handle(main), handle(side));
    auto future = c10::make_intrusive<c10::ivalue::Future>(
        c10::TensorType::get(), std::vector<c10::Device>{buffer.device()});
    if (mistake_ == Mistake::kWrongStream) guard.reset_stream(main);
    future->markCompleted(buffer);
    works_.push_back(std::move(work));
    return future;
  }
  at::Tensor parseHookResult(const c10::IValue& result) override { return result.toTensor(); }

 private:
  static void order(const c10::Stream& later, const c10::Stream& earlier) {
    c10::Event event(at::kCUDA);
    event.record(earlier);
    event.block(later);
  }

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const Mistake mistake_;
  bool& overlapped_;
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;  // whose destructor may wait
};

class FakeReducer : public testing::EverySchedule {
 protected:
  // What the test left unordered is so no longer, for the next one.
  void TearDown() override {
    c10::cuda::device_synchronize();
    fake_gpu::findings();
  }

  // Whether the hook's work ran beside the backward pass, and the findings.
  std::vector<std::string> findings_of(Mistake mistake, bool& overlapped) {
    ReducerNet net(ranks.device());
    NetTraining training(net, group, std::make_unique<SideStreamHook>(group, mistake, overlapped));
    for (int step = 0; step < kSteps; ++step) training.step(ranks.rank, step);
    trained = net.flat();
    return fake_gpu::findings();
  }
  std::vector<std::string> findings_of(Mistake mistake) {
    bool overlapped = false;
    return findings_of(mistake, overlapped);
  }

  static constexpr int kSteps = 3;
  const GpuRanks& ranks = GpuRanks::get();
  const c10::intrusive_ptr<c10d::ProcessGroup> group = [] {
    static const auto made = GpuRanks::get().nccl_group("reducer");
    return made;
  }();
  const at::Tensor expected = ReducerNet::trained_on_cpu(ranks.size, kSteps);
  at::Tensor trained;
};
INSTANTIATE_TEST_SUITE_P(, FakeReducer, ::testing::ValuesIn(fake_gpu::kSchedules),
                         testing::name_of_schedule);

TEST_P(FakeReducer, ItsOwnAllReduceGivesTheNumbersOfTheCpu) {
  ReducerNet net(ranks.device());
  NetTraining training(net, group, nullptr);
  for (int step = 0; step < kSteps; ++step) training.step(ranks.rank, step);
  EXPECT_TRUE(at::equal(net.flat(), expected));
  EXPECT_THAT(fake_gpu::findings(), IsEmpty());
}

TEST_P(FakeReducer, AHookOnASideStreamGivesTheNumbersOfTheCpu) {
  bool overlapped = false;
  EXPECT_THAT(findings_of(Mistake::kNone, overlapped), IsEmpty());
  EXPECT_TRUE(at::equal(trained, expected));
  EXPECT_TRUE(overlapped);
}

TEST_P(FakeReducer, AHookWhoseStreamDoesNotWaitForTheGradientsIsFound) {
  EXPECT_THAT(
      findings_of(Mistake::kSideDoesNotWait),
      Contains(AllOf(HasSubstr("race on 'bucket'"), HasSubstr("'aten::mul' on stream 'side'"))));
}

TEST_P(FakeReducer, AHookThatDoesNotWaitForItsCollectiveIsFound) {
  EXPECT_THAT(findings_of(Mistake::kNoWaitForCollective),
              Contains(AllOf(HasSubstr("race on"), HasSubstr("'ncclAllGather' on stream "),
                             HasSubstr("on stream 'side'"))));
}

TEST_P(FakeReducer, AHookWhoseFutureHasTheEventOfTheWrongStreamIsFound) {
  EXPECT_THAT(findings_of(Mistake::kWrongStream),
              Contains(AllOf(HasSubstr("race on 'bucket'"), HasSubstr("on stream 'side'"),
                             HasSubstr("on stream 'default of device "))));
}

TEST_P(FakeReducer, AHookThatMakesTheMainStreamWaitIsSeen) {
  bool overlapped = true;
  EXPECT_THAT(findings_of(Mistake::kMainWaits, overlapped), IsEmpty());
  EXPECT_TRUE(at::equal(trained, expected));
  EXPECT_FALSE(overlapped);
}

}  // namespace
}  // namespace thinwire
