// The MPI backend beyond single collectives: several operations at a time, futures, messages in any
// order.
#include <future>
#include <thread>

#include <ATen/core/ivalue_inl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/mpi_ranks.h"

namespace thinwire::comm {
namespace {

using at::Tensor;
using ::testing::HasSubstr;
using thinwire::testing::MpiRanks;
using Tensors = std::vector<Tensor>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

class Operations : public ::testing::Test {
 protected:
  MpiRanks& ranks_ = MpiRanks::get();
  c10d::Backend& mpi_ = *ranks_.mpi;
  const int rank_ = ranks_.rank, size_ = ranks_.size;

  // Values that no other operation and rank has.
  Tensor mine(std::int64_t numel, int operation) const {
    return at::full({numel}, 1000 * operation + rank_ + 1, at::kLong);
  }
  Tensor sum(std::int64_t numel, int operation) const {
    return at::full({numel}, 1000 * operation * size_ + size_ * (size_ + 1) / 2, at::kLong);
  }
};

TEST_F(Operations, ManyInFlightDoNotMix) {
  std::vector<Tensors> sums, copies;
  std::vector<WorkPtr> works;
  for (int i = 0; i < 30; ++i) {
    // Short ones, and ones that take several stages.
    const std::int64_t numel = i % 3 == 0 ? 50'000 : i;
    sums.push_back({mine(numel, i)});
    copies.push_back({mine(numel, i)});
    works.push_back(mpi_.allreduce(sums.back()));
    c10d::BroadcastOptions options;
    options.rootRank = i % size_;
    works.push_back(mpi_.broadcast(copies.back(), options));
  }
  for (auto work = works.rbegin(); work != works.rend(); ++work) (*work)->wait();
  for (int i = 0; i < 30; ++i) {
    const auto n = static_cast<std::size_t>(i);
    EXPECT_TRUE(at::equal(sums[n][0], sum(sums[n][0].numel(), i))) << i;
    EXPECT_TRUE(at::equal(copies[n][0], at::full_like(copies[n][0], 1000 * i + i % size_ + 1)))
        << i;
  }
}

TEST_F(Operations, TwoCommunicatorsNeedNoCommonOrder) {
  const auto other = ranks_.another();
  Tensors here = {mine(40'000, 1)}, there = {mine(40'000, 2)};
  WorkPtr first, second;
  if (rank_ % 2 == 0) {
    first = mpi_.allreduce(here);
    second = other->allreduce(there);
  } else {
    second = other->allreduce(there);
    first = mpi_.allreduce(here);
  }
  first->wait();
  second->wait();
  EXPECT_TRUE(at::equal(here[0], sum(40'000, 1)));
  EXPECT_TRUE(at::equal(there[0], sum(40'000, 2)));
}

TEST_F(Operations, TwoThreadsEachWithTheirCommunicator) {
  const auto other = ranks_.another();
  const auto work = [&](c10d::Backend& backend, int operation) {
    for (int i = 0; i < 40; ++i) {
      Tensors tensors = {mine(i % 4 == 0 ? 30'000 : 7, operation + i)};
      backend.allreduce(tensors)->wait();
      if (!at::equal(tensors[0], sum(tensors[0].numel(), operation + i))) return i;
    }
    return -1;
  };
  auto wrong = std::async(std::launch::async, [&] { return work(*other, 100); });
  EXPECT_EQ(work(mpi_, 0), -1);
  EXPECT_EQ(wrong.get(), -1);
}

TEST_F(Operations, CoalescedOnesFinishTogether) {
  Tensors a = {mine(5, 1)}, b = {mine(60'000, 2)};
  mpi_.startCoalescing();
  mpi_.allreduce(a);
  mpi_.allreduce(b);
  mpi_.endCoalescing()->wait();
  EXPECT_TRUE(at::equal(a[0], sum(5, 1)));
  EXPECT_TRUE(at::equal(b[0], sum(60'000, 2)));
  EXPECT_THROW(mpi_.endCoalescing(), InvalidArgument);
}

TEST_F(Operations, MessagesAreReceivedByTagInAnyOrder) {
  const int next = (rank_ + 1) % size_, previous = (rank_ + size_ - 1) % size_;
  std::vector<Tensors> out, in;
  std::vector<WorkPtr> works;
  for (int tag = 0; tag < 6; ++tag) {
    out.push_back({mine(1 + 5000 * tag, tag)});
    works.push_back(mpi_.send(out.back(), next, tag));
  }
  for (int tag = 5; tag >= 0; --tag) {
    in.push_back({at::zeros({1 + 5000 * tag}, at::kLong)});
    works.push_back(mpi_.recv(in.back(), previous, tag));
  }
  for (const auto& work : works) work->wait();
  for (int tag = 0; tag < 6; ++tag) {
    const Tensor& got = in[static_cast<std::size_t>(5 - tag)][0];
    EXPECT_TRUE(at::equal(got, at::full_like(got, 1000 * tag + previous + 1))) << tag;
  }
}

TEST_F(Operations, MessagesOfOneTagKeepTheirOrder) {
  const int next = (rank_ + 1) % size_, previous = (rank_ + size_ - 1) % size_;
  std::vector<Tensors> out, in;
  std::vector<WorkPtr> works;
  for (int i = 0; i < 10; ++i) {
    out.push_back({mine(3, i)});
    works.push_back(mpi_.send(out.back(), next, 3));
    in.push_back({at::zeros({3}, at::kLong)});
    works.push_back(mpi_.recv(in.back(), previous, 3));
  }
  for (const auto& work : works) work->wait();
  for (int i = 0; i < 10; ++i)
    EXPECT_EQ(in[static_cast<std::size_t>(i)][0][0].item<std::int64_t>(), 1000 * i + previous + 1);
}

TEST_F(Operations, FuturesHoldTheResultAndRunCallbacks) {
  Tensors tensors = {mine(9, 1)};
  const auto work = mpi_.allreduce(tensors);
  std::promise<Tensor> seen;
  work->getFuture()->addCallback([&](c10::ivalue::Future& future) {
    seen.set_value(future.constValue().toTensorVector().at(0));
  });
  EXPECT_TRUE(at::equal(seen.get_future().get(), sum(9, 1)));
  work->wait();
  EXPECT_TRUE(work->isCompleted());
  EXPECT_TRUE(work->isSuccess());
  EXPECT_TRUE(at::equal(work->result().at(0), sum(9, 1)));
}

TEST_F(Operations, ACallbackThatWaitsIsRefused) {
  Tensors tensors = {mine(2, 1)};
  std::promise<std::string> said;
  WorkPtr inner;
  const auto work = mpi_.allreduce(tensors);
  work->getFuture()->addCallback([&](c10::ivalue::Future&) {
    inner = mpi_.barrier({});
    try {
      inner->wait();
      said.set_value("nothing");
    } catch (const InvalidArgument& error) {
      said.set_value(error.what());
    }
  });
  const std::string text = said.get_future().get();
  work->wait();
  // A callback that comes after the operation has finished runs on this thread, which may wait.
  if (text != "nothing") {
    EXPECT_THAT(text, HasSubstr("must not wait"));
  }
  inner->wait();
}

// A rank that has finished and does something else still owes its peers the word that it has read
// their messages. Many small parts overflow the queues in which MPI keeps such notices.
TEST_F(Operations, AFinishedRankStillServesItsPeers) {
  const auto cut = ranks_.another(8 << 10);
  Tensor input = at::full({1 << 20}, rank_, at::kFloat);
  Tensor output = at::empty({size_ << 20}, at::kFloat);
  for (int trial = 0; trial < 5; ++trial) {
    cut->_allgather_base(output, input)->wait();
    ranks_.gloo->barrier({})->wait();
  }
  for (int peer = 0; peer < size_; ++peer)
    EXPECT_EQ(output[(peer + 1) * (1 << 20) - 1].item<float>(), static_cast<float>(peer));
}

}  // namespace
}  // namespace thinwire::comm
