// The real ProcessGroupNCCL between processes, on the fake NCCL: its collectives give the right
// numbers and wait for nothing on the host.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include "thinwire/tests/gpu/every_schedule.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/ranks/ranks.h"

namespace thinwire {
namespace {

using testing::GpuRanks;
using ::testing::IsEmpty;

class FakeNccl : public testing::EverySchedule {
 protected:
  ~FakeNccl() override { EXPECT_THAT(fake_gpu::findings(), IsEmpty()); }

  // i + 10 * rank, of this rank or another.
  at::Tensor values(std::int64_t numel, int of, at::ScalarType dtype = at::kFloat) const {
    return (at::arange(numel) + 10 * of).to(dtype).to(ranks.device());
  }
  static void expect_equal(const at::Tensor& got, const at::Tensor& expected) {
    EXPECT_TRUE(at::equal(got.cpu(), expected.cpu())) << got.cpu();
  }

  const GpuRanks& ranks = GpuRanks::get();
  const int rank = ranks.rank, size = ranks.size;
  // One for all tests: a communicator costs time.
  const c10::intrusive_ptr<c10d::ProcessGroup> group = [] {
    static const auto made = GpuRanks::get().nccl_group("collectives");
    return made;
  }();
};
INSTANTIATE_TEST_SUITE_P(, FakeNccl, ::testing::ValuesIn(fake_gpu::kSchedules),
                         testing::name_of_schedule);

TEST_P(FakeNccl, AllReduceAddsInTheOrderOfRanks) {
  for (const auto dtype :
       {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kInt}) {
    std::vector<at::Tensor> tensor = {values(1000, rank, dtype)};
    at::Tensor expected = values(1000, 0, dtype).cpu();
    for (int r = 1; r < size; ++r) expected = expected + values(1000, r, dtype).cpu();
    {
      const fake_gpu::NoHostSync guard;
      group->allreduce(tensor)->wait();
    }
    expect_equal(tensor[0], expected);
  }
  c10d::AllreduceOptions largest;
  largest.reduceOp = c10d::ReduceOp::MAX;
  std::vector<at::Tensor> tensor = {values(10, rank)};
  group->allreduce(tensor, largest)->wait();
  expect_equal(tensor[0], values(10, size - 1));
}

TEST_P(FakeNccl, GathersAndScatters) {
  const at::Tensor own = values(100, rank);
  at::Tensor all = at::empty({100 * size}, own.options());
  group->_allgather_base(all, const_cast<at::Tensor&>(own))->wait();
  std::vector<at::Tensor> parts;
  for (int r = 0; r < size; ++r) parts.push_back(values(100, r));
  expect_equal(all, at::cat(parts));

  at::Tensor sum = at::empty({100}, own.options());
  group->_reduce_scatter_base(sum, all)->wait();
  expect_equal(sum, parts[static_cast<std::size_t>(rank)] * size);

  std::vector<at::Tensor> tensor = {values(100, rank)};
  c10d::BroadcastOptions options;
  options.rootRank = size - 1;
  group->broadcast(tensor, options)->wait();
  expect_equal(tensor[0], parts.back());
}

// More than a pipe holds, and another size for each peer.
TEST_P(FakeNccl, AllToAllOfUnequalParts) {
  const auto count = [](int from, int to) { return std::int64_t{70'000} + 10 * from + to; };
  std::vector<std::int64_t> in, out;
  std::vector<at::Tensor> sent, expected;
  for (int r = 0; r < size; ++r) {
    in.push_back(count(rank, r));
    out.push_back(count(r, rank));
    sent.push_back(values(in.back(), rank, at::kLong) + r);
    expected.push_back(values(out.back(), r, at::kLong) + rank);
  }
  at::Tensor from = at::cat(sent).view(at::kByte);
  at::Tensor to = at::empty_like(at::cat(expected).view(at::kByte));
  for (auto* sizes : {&in, &out})
    for (auto& one : *sizes) one *= 8;
  {
    const fake_gpu::NoHostSync guard;
    group->alltoall_base(to, from, out, in)->wait();
  }
  expect_equal(to.view(at::kLong), at::cat(expected));
}

TEST_P(FakeNccl, SendAndReceive) {
  std::vector<at::Tensor> mine = {values(100, rank)}, other = {at::empty_like(mine[0])};
  const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  if (rank == 0) {
    group->send(mine, next, 0)->wait();
    group->recv(other, previous, 0)->wait();
  } else {
    group->recv(other, previous, 0)->wait();
    group->send(mine, next, 0)->wait();
  }
  expect_equal(other[0], values(100, previous));
}

}  // namespace
}  // namespace thinwire
