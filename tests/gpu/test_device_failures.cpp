// What happens to averages of CUDA tensors over NCCL when messages are damaged or a rank does not
// do as the others do, on fake devices.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <c10/cuda/CUDAFunctions.h>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/piece_task.h"
#include "thinwire/tests/comm/average/averager_fixture.h"
#include "thinwire/tests/support/error_of.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/ranks/ranks.h"

namespace thinwire::comm {
namespace {

using ::testing::AllOf;
using testing::GpuRanks;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// NCCL whose messages arrive with one bit wrong where a test asks for it.
class DamagingBackend final : public c10d::Backend {
 public:
  explicit DamagingBackend(c10::intrusive_ptr<c10d::Backend> inner)
      : Backend(inner->getRank(), inner->getSize()), inner_(std::move(inner)) {}

  const std::string getBackendName() const override { return inner_->getBackendName(); }
  c10::intrusive_ptr<Options> getBackendOptions() override { return inner_->getBackendOptions(); }

  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<std::int64_t>& to,
                        std::vector<std::int64_t>& from,
                        const c10d::AllToAllOptions& options) override {
    return damaged(inner_->alltoall_base(output, input, to, from, options), output, scatter);
  }
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const c10d::AllgatherOptions& options) override {
    return damaged(inner_->_allgather_base(output, input, options), output, gather);
  }
  WorkPtr allreduce(std::vector<at::Tensor>& tensors,
                    const c10d::AllreduceOptions& options) override {
    return inner_->allreduce(tensors, options);
  }

  // Of the next of these messages: which byte; negative: none.
  std::int64_t scatter = -1, gather = -1;

 private:
  static WorkPtr damaged(WorkPtr work, at::Tensor& output, std::int64_t& byte) {
    if (byte < 0) return work;
    work->wait();
    output.narrow(0, std::exchange(byte, -1), 1).bitwise_xor_(16);
    return work;
  }
  c10::intrusive_ptr<c10d::Backend> inner_;
};

class DeviceFailures : public ::testing::Test {
 protected:
  void SetUp() override {
    static int tests = 0;
    name = concat("failures", tests++);
    const auto nccl = ranks.nccl_group(name);
    backend = c10::make_intrusive<DamagingBackend>(nccl->getBackend(at::kCUDA));
    group = c10::make_intrusive<c10d::ProcessGroup>(nccl->getStore(), ranks.rank, ranks.size);
    group->setDefaultBackend(c10d::ProcessGroup::BackendType::NCCL);
    group->setBackend(at::kCUDA, c10d::ProcessGroup::BackendType::NCCL, backend);
    group->setBackend(at::kCPU, c10d::ProcessGroup::BackendType::GLOO, nccl->getBackend(at::kCPU));
    averager = std::make_unique<BucketAverager>(group);
  }
  void TearDown() override {
    c10::cuda::device_synchronize();
    EXPECT_THAT(fake_gpu::findings(), IsEmpty());
  }

  void step(std::int64_t number) {
    Bucket bucket = testing::random_bucket(kShapes, static_cast<std::uint64_t>(number), ranks.rank);
    bucket.buffer = bucket.buffer.to(ranks.device());
    averager->average(bucket, plan, number);
  }
  // The error that a step ends with, which is the same on all ranks.
  std::string error_of_all(std::int64_t number) {
    const std::string mine = testing::error_of<FrameError>([&] { step(number); });
    const auto key = [&](int rank) { return concat(name, "/error/", number, "/", rank); };
    const auto to_bytes = [](const std::string& text) {
      return std::vector<std::uint8_t>(text.begin(), text.end());
    };
    ranks.store->set(key(ranks.rank), to_bytes(mine));
    for (int rank = 0; rank < ranks.size; ++rank)
      EXPECT_EQ(ranks.store->get(key(rank)), to_bytes(mine)) << "rank " << rank;
    return mine;
  }

  const testing::LayerShapes kShapes = {{"a", {400}}, {"b", {20, 30}}};
  const GpuRanks& ranks = GpuRanks::get();
  std::string name;
  c10::intrusive_ptr<DamagingBackend> backend;
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  Plan plan = testing::uniform_plan(kShapes, "quantize(bits=4, bucket=128)");
  std::unique_ptr<BucketAverager> averager;
};

TEST_F(DeviceFailures, ADamagedFrameIsToldToAllRanksTwoStepsLater) {
  step(0);
  if (ranks.rank == 0) backend->scatter = 80;  // of its own frame
  step(1);
  step(2);
  EXPECT_THAT(error_of_all(3),
              AllOf(HasSubstr("step 1: rank 0 reports: bucket 0, exchange #2: the frame of rank 0 "
                              "was refused: the checksum is "),
                    HasSubstr(", expected ")));
}

TEST_F(DeviceFailures, ADamagedMeanIsToldToAllRanks) {
  step(0);
  if (ranks.rank == 1) backend->gather = 12;  // the sender in the header of rank 0's
  step(1);
  step(2);
  EXPECT_THAT(error_of_all(3),
              HasSubstr("step 1: rank 1 reports: bucket 0, exchange #2: the frame of rank 0 was "
                        "refused: the sender is 16, expected 0"));
}

TEST_F(DeviceFailures, ASavedStateIsNotOneOfADamagedStep) {
  step(0);
  if (ranks.rank == 0) backend->scatter = 80;
  step(1);
  EXPECT_THAT(testing::error_of<FrameError>([&] { averager->state(); }),
              HasSubstr("step 1: rank 0 reports"));
}

TEST_F(DeviceFailures, ADamagedFrameIsToldAtOnceToThoseWhoWait) {
  step(0);
  averager->settle();
  if (ranks.rank == 1) backend->gather = 12;
  step(1);
  EXPECT_THAT(testing::error_of<FrameError>([&] { averager->settle(); }),
              HasSubstr("step 1: rank 1 reports"));
}

// Where ranks may change, a step is over once all have all of it.
TEST_F(DeviceFailures, AnUncompressedStepEndsWithAnAgreementFromTheFirstMarkOn) {
  plan = testing::uniform_plan(kShapes, "none");
  const auto sent_by = [&](std::int64_t number) {
    const std::uint64_t before = averager->traffic().sent_bytes;
    step(number);
    averager->settle();
    return averager->traffic().sent_bytes - before;
  };
  const std::uint64_t dense = sent_by(0);
  averager->mark();
  EXPECT_EQ(sent_by(1),
            dense + sizeof(kernels::DeviceVerdict) * static_cast<std::uint64_t>(ranks.size - 1));
}

// A group that is left may hold anything: what other ranks said last is not looked at.
TEST_F(DeviceFailures, AStateIsGivenOnceTheGroupIsAbandoned) {
  step(0);
  averager->settle();
  if (ranks.rank == 0) backend->scatter = 80;
  step(1);
  averager->abandon();
  EXPECT_NO_THROW(averager->state());
}

// For rank 1 does not come to what the others queue.
TEST_F(DeviceFailures, CollectivesOfTheCallerAreWatchedLikeBuckets) {
  const auto nccl = ranks.nccl_group(name + "/besides");
  BucketAverager other(nccl);
  at::Tensor ones = at::ones({100}, at::device(ranks.device()));
  const auto sum = [&](std::uint64_t number) {
    std::vector<at::Tensor> tensors = {ones};
    nccl->allreduce(tensors)->wait();
    other.watch(ranks.device(), "a sum of the caller", number);
  };
  sum(1);
  EXPECT_EQ(ones.sum().item<float>(), 100.0f * static_cast<float>(ranks.size));
  other.check_device();
  if (ranks.rank == 1) {
    EXPECT_THAT(testing::error_of<Error>([&] {
                  guard(*nccl, "something else", 2, [] { throw std::runtime_error("no sum"); });
                }),
                HasSubstr("no sum"));
    return;
  }
  sum(2);
  c10::cuda::device_synchronize();  // until the communicators are aborted
  EXPECT_THAT(testing::error_of<Error>([&] { other.check_device(); }),
              AllOf(HasSubstr("rank 1"), HasSubstr("no sum")));
}

TEST_F(DeviceFailures, RanksWithDifferentLayersAreToldBeforeTheyExchangeThem) {
  Bucket bucket = testing::random_bucket(kShapes, 1, ranks.rank);
  bucket.buffer = bucket.buffer.to(ranks.device());
  if (ranks.rank == 1) bucket.layers[1].name = "c";
  EXPECT_THAT(testing::error_of<InvalidArgument>([&] { averager->average(bucket, plan, 0); }),
              HasSubstr("the gradients of bucket 0"));
}

TEST_F(DeviceFailures, BucketsOnSeveralDevicesAreRefusedByName) {
  step(0);
  Bucket bucket = testing::random_bucket(kShapes, 1, ranks.rank);
  EXPECT_THAT(testing::error_of<InvalidArgument>([&] { averager->average(bucket, plan, 1); }),
              HasSubstr("bucket 0 is on cpu, the buckets before it on cuda:"));
}

TEST_F(DeviceFailures, AGroupWithoutAHostsBackendIsRefused) {
  const auto alone =
      c10::make_intrusive<c10d::ProcessGroup>(group->getStore(), ranks.rank, ranks.size);
  alone->setDefaultBackend(c10d::ProcessGroup::BackendType::NCCL);
  alone->setBackend(at::kCUDA, c10d::ProcessGroup::BackendType::NCCL, backend);
  BucketAverager other(alone);
  Bucket bucket = testing::random_bucket(kShapes, 1, ranks.rank);
  bucket.buffer = bucket.buffer.to(ranks.device());
  EXPECT_THAT(testing::error_of<InvalidArgument>([&] { other.average(bucket, plan, 0); }),
              HasSubstr("cpu:gloo,cuda:nccl"));
}

}  // namespace
}  // namespace thinwire::comm
