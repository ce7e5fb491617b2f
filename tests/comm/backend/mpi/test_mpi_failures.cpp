// What the ranks of the MPI backend say when one of them is missing or does something else. Every
// test breaks a backend of its own.
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/mpi_ranks.h"

namespace thinwire::comm {
namespace {

using at::Tensor;
using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using thinwire::testing::MpiRanks;
using Tensors = std::vector<Tensor>;

struct Failure {
  int rank = -2;
  std::string text = "no error";
};

Failure failure_of(const std::function<c10::intrusive_ptr<c10d::Work>()>& start) {
  try {
    start()->wait();
  } catch (const CommError& error) {
    return {error.rank(), error.what()};
  }
  return {};
}

class MpiFailures : public ::testing::Test {
 protected:
  MpiRanks& ranks_ = MpiRanks::get();
  const int rank_ = ranks_.rank, size_ = ranks_.size;
  // The rank that errs.
  const int odd_ = size_ - 1;
  const c10::intrusive_ptr<c10d::Backend> mpi_ = ranks_.another();

  // All ranks have come here.
  void meet() { ranks_.gloo->barrier({})->wait(); }

  Failure all_reduce(const Tensor& tensor, c10d::ReduceOp::RedOpType op = c10d::ReduceOp::SUM) {
    Tensors tensors = {tensor};
    c10d::AllreduceOptions options;
    options.reduceOp = op;
    options.timeout = milliseconds(20'000);
    return failure_of([&] { return mpi_->allreduce(tensors, options); });
  }
  // On this rank, the others' fault is the odd one's; on that one, anybody's.
  void expect_at_fault(const Failure& failure) {
    if (rank_ == odd_) {
      EXPECT_THAT(failure.rank, AllOf(::testing::Ge(0), ::testing::Ne(odd_))) << failure.text;
    } else {
      EXPECT_EQ(failure.rank, odd_) << failure.text;
    }
  }
};

TEST_F(MpiFailures, ARankThatDoesNotJoinIsNamed) {
  meet();
  if (rank_ != odd_) {
    Tensors tensors = {at::ones({10})};
    c10d::AllreduceOptions options;
    options.timeout = milliseconds(1000);
    const Failure failure = failure_of([&] { return mpi_->allreduce(tensors, options); });
    EXPECT_EQ(failure.rank, odd_);
    EXPECT_THAT(
        failure.text,
        AllOf(HasSubstr("mpi allreduce #0"),
              HasSubstr(concat("rank(s) ", odd_, " sent nothing within the timeout of 1000 ms"))));
    EXPECT_EQ(mpi_->getError(), c10d::ErrorType::COMM_ERROR);
    // From now on the backend says why, at once.
    EXPECT_THAT(failure_of([&] { return mpi_->barrier({}); }).text,
                AllOf(HasSubstr("broke earlier"), HasSubstr("sent nothing")));
  }
  meet();
  // Other backends of the same ranks still work.
  Tensors tensors = {at::ones({3})};
  ranks_.mpi->allreduce(tensors)->wait();
  EXPECT_TRUE(at::equal(tensors[0], at::full({3}, static_cast<float>(size_))));
}

TEST_F(MpiFailures, AReceiveWithoutASendEndsAtItsTimeout) {
  const auto impatient = make_mpi_backend(rank_, size_, milliseconds(300));
  Tensors tensors = {at::ones({10})};
  const int peer = (rank_ + 1) % size_;
  const Failure failure = failure_of([&] { return impatient->recv(tensors, peer, 1); });
  EXPECT_EQ(failure.rank, peer);
  EXPECT_THAT(failure.text, HasSubstr("sent nothing within the timeout of 300 ms"));
  meet();
}

TEST_F(MpiFailures, AnAnySourceReceiveEndsToo) {
  const auto impatient = make_mpi_backend(rank_, size_, milliseconds(300));
  Tensors tensors = {at::ones({10})};
  EXPECT_THAT(failure_of([&] { return impatient->recvAnysource(tensors, 1); }).text,
              HasSubstr("no rank sent anything within the timeout of 300 ms"));
  meet();
}

TEST_F(MpiFailures, AFailureFailsWhatElseIsPending) {
  const auto impatient = make_mpi_backend(rank_, size_, milliseconds(300));
  Tensors one = {at::ones({4})}, two = {at::ones({4})};
  c10d::AllreduceOptions patient;
  patient.timeout = milliseconds(60'000);
  meet();
  if (rank_ != odd_) {
    const auto pending = impatient->allreduce(one, patient);
    const auto first = impatient->recv(two, odd_, 1);
    EXPECT_THAT(failure_of([&] { return first; }).text, HasSubstr("sent nothing"));
    EXPECT_THAT(failure_of([&] { return pending; }).text, HasSubstr("this backend broke"));
    EXPECT_FALSE(pending->isSuccess());
    EXPECT_TRUE(pending->getFuture()->hasError());
  }
  meet();
}

TEST_F(MpiFailures, AbortFailsWhatIsPending) {
  Tensors tensors = {at::ones({4})};
  const auto pending = mpi_->recv(tensors, (rank_ + 1) % size_, 1);
  mpi_->abort();
  EXPECT_THAT(failure_of([&] { return pending; }).text, HasSubstr("the program aborted it"));
  meet();
}

// Short against short, short against long, and lengths that make another number of stages.
TEST_F(MpiFailures, DifferentSizesAreAnErrorOnEveryRank) {
  for (const auto& [most, one] : std::vector<std::pair<int, int>>{{4, 5}, {10, 900'000}}) {
    const auto backend = ranks_.another();
    Tensors tensors = {at::ones({rank_ == odd_ ? one : most})};
    const Failure failure = failure_of([&] { return backend->allreduce(tensors); });
    EXPECT_THAT(failure.text, HasSubstr("the sizes differ"));
    expect_at_fault(failure);
    meet();
  }
}

TEST_F(MpiFailures, DifferentSplitsAreAnErrorOnTheReceiver) {
  // Rank 0 sends one row more to the next rank than that one expects.
  const auto count = static_cast<std::size_t>(size_);
  std::vector<std::int64_t> out(count, 2), in(count, 2);
  if (rank_ == 0) out[1] = 3;
  Tensor input = at::ones({2 * size_ + (rank_ == 0 ? 1 : 0), 4}), output = at::ones({2 * size_, 4});
  const Failure failure = failure_of([&] { return mpi_->alltoall_base(output, input, in, out); });
  if (rank_ == 1) {
    EXPECT_EQ(failure.rank, 0);
    EXPECT_THAT(failure.text, HasSubstr("expects 32 bytes of rank 0, which sent more"));
  }
  meet();
}

TEST_F(MpiFailures, DifferentTypesAreAnErrorOnEveryRank) {
  const Failure failure = all_reduce(at::ones({6}, rank_ == odd_ ? at::kInt : at::kFloat));
  EXPECT_THAT(failure.text, AllOf(HasSubstr("allreduce of Int"), HasSubstr("allreduce of Float")));
  expect_at_fault(failure);
  meet();
}

TEST_F(MpiFailures, DifferentReductionsAreAnErrorOnEveryRank) {
  const Failure failure =
      all_reduce(at::ones({6}), rank_ == odd_ ? c10d::ReduceOp::MAX : c10d::ReduceOp::SUM);
  EXPECT_THAT(failure.text, AllOf(HasSubstr("(reduction 0)"), HasSubstr("(reduction 4)")));
  expect_at_fault(failure);
  meet();
}

TEST_F(MpiFailures, DifferentOperationsAreAnErrorOnEveryRank) {
  Failure failure;
  if (rank_ == odd_) {
    Tensor input = at::ones({6}), output = at::ones({6 * size_});
    failure = failure_of([&] { return mpi_->_allgather_base(output, input); });
  } else {
    failure = all_reduce(at::ones({6}));
  }
  EXPECT_THAT(failure.text, AllOf(HasSubstr("_allgather_base"), HasSubstr("runs"),
                                  HasSubstr("allreduce of Float")));
  expect_at_fault(failure);
  meet();
}

TEST_F(MpiFailures, ABackendThatOneRankDoesNotMakeEndsAtTheTimeout) {
  if (rank_ != odd_) {
    try {
      make_mpi_backend(rank_, size_, milliseconds(300));
      ADD_FAILURE() << "no error";
    } catch (const CommError& error) {
      EXPECT_THAT(error.what(), HasSubstr("not all ranks made the backend within the timeout"));
    }
  }
  meet();
}

}  // namespace
}  // namespace thinwire::comm
