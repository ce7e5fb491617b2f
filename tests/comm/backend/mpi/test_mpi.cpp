// Every collective of the MPI backend against the same one of Gloo, bit for bit.
//
// Gloo knows fewer types: what it only moves goes through it as bytes, what it reduces as a wider
// type that holds the same whole numbers.
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/comm/backend/mpi/schedule.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/comm/backend/mpi/mpi_values.h"
#include "thinwire/tests/support/mpi_ranks.h"

namespace thinwire::comm {
namespace {

using at::Tensor;
using c10d::ReduceOp;
using thinwire::testing::MpiRanks;
using Tensors = std::vector<Tensor>;

constexpr int kTrials = 6;

class Collectives : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  MpiRanks& ranks_ = MpiRanks::get();
  c10d::Backend& mpi_ = *ranks_.mpi;
  c10d::Backend& gloo_ = *ranks_.gloo;
  const int rank_ = ranks_.rank, size_ = ranks_.size;
  Values values_{ranks_.rank, static_cast<int>(GetParam()) + 1};

  // Everybody's tensor, through Gloo. The tensors have one shape and type.
  Tensors everyones(const Tensor& mine) {
    Tensors inputs = {bytes_of(mine)};
    std::vector<Tensors> outputs(1);
    for (int r = 0; r < size_; ++r) outputs[0].push_back(at::empty_like(inputs[0]));
    gloo_.allgather(outputs, inputs)->wait();
    Tensors result;
    for (const Tensor& bytes : outputs[0])
      result.push_back(bytes.numel() == 0 ? at::empty(mine.sizes(), mine.options())
                                          : bytes.view(mine.scalar_type()).view(mine.sizes()));
    return result;
  }
  Tensor blank(at::IntArrayRef shape) {
    return values_.lay_out(at::zeros(shape, at::TensorOptions().dtype(GetParam())));
  }
  Tensors blanks(at::IntArrayRef shape) {
    Tensors list;
    for (int r = 0; r < size_; ++r) list.push_back(blank(shape));
    return list;
  }
  std::vector<std::int64_t> with_rows(std::int64_t rows, std::vector<std::int64_t> shape) {
    shape.insert(shape.begin(), rows);
    return shape;
  }
};

TEST_P(Collectives, Broadcast) {
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto root = values_.below(size_);
    Tensors mine = {values_.any(values_.shape(), GetParam())};
    Tensors theirs = {bytes_of(mine[0])};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    mpi_.broadcast(mine, options)->wait();
    gloo_.broadcast(theirs, options)->wait();
    EXPECT_TRUE(at::equal(bytes_of(mine[0]), theirs[0])) << "shape " << mine[0].sizes();
  }
}

TEST_P(Collectives, AllGatherInEveryForm) {
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto shape = values_.shape();
    Tensors input = {values_.any(shape, GetParam())};
    const Tensors expected = everyones(input[0]);

    std::vector<Tensors> lists = {blanks(shape)};
    mpi_.allgather(lists, input)->wait();
    Tensor joined = blank(with_rows(size_, shape));
    mpi_._allgather_base(joined, input[0])->wait();
    std::vector<Tensors> by_rank;
    for (int r = 0; r < size_; ++r) by_rank.push_back({blank(shape), blank(shape)});
    Tensors twice = {input[0], input[0]};
    mpi_.allgather_coalesced(by_rank, twice)->wait();
    Tensors joins = {at::empty(with_rows(size_, shape), GetParam()),
                     at::empty(with_rows(size_, shape), GetParam())};
    mpi_.allgather_into_tensor_coalesced(joins, twice)->wait();
    for (int r = 0; r < size_; ++r) {
      const Tensor& right = expected[static_cast<std::size_t>(r)];
      EXPECT_TRUE(same_bits(lists[0][static_cast<std::size_t>(r)], right));
      EXPECT_TRUE(same_bits(joined.select(0, r), right));
      EXPECT_TRUE(same_bits(by_rank[static_cast<std::size_t>(r)][1], right));
      EXPECT_TRUE(same_bits(joins[1].select(0, r), right));
    }
  }
}

TEST_P(Collectives, GatherAndScatterAreInverse) {
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto shape = values_.shape();
    const auto root = values_.below(size_);
    const bool is_root = root == rank_;
    Tensors input = {values_.any(shape, GetParam())};
    const Tensors expected = everyones(input[0]);
    std::vector<Tensors> gathered = {blanks(shape)};
    if (!is_root) gathered.clear();
    c10d::GatherOptions gather;
    gather.rootRank = root;
    mpi_.gather(gathered, input, gather)->wait();
    if (is_root) {
      for (std::size_t r = 0; r < expected.size(); ++r)
        EXPECT_TRUE(same_bits(gathered[0][r], expected[r]));
    }
    Tensors back = {blank(shape)};
    c10d::ScatterOptions scatter;
    scatter.rootRank = root;
    mpi_.scatter(back, gathered, scatter)->wait();
    EXPECT_TRUE(same_bits(back[0], input[0]));
  }
}

TEST_P(Collectives, AllToAllWithUnevenSplits) {
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto shape = values_.shape();
    const auto count = static_cast<std::size_t>(size_);
    std::vector<std::int64_t> out(count), in(count);
    for (int from = 0; from < size_; ++from)
      for (int to = 0; to < size_; ++to) {
        const auto rows = values_.below(4);
        if (from == rank_) out[static_cast<std::size_t>(to)] = rows;
        if (to == rank_) in[static_cast<std::size_t>(from)] = rows;
      }
    const auto sum = [](const auto& splits) {
      return std::accumulate(splits.begin(), splits.end(), std::int64_t{0});
    };
    Tensor input = values_.any(with_rows(sum(out), shape), GetParam());
    Tensor mine = blank(with_rows(sum(in), shape));
    mpi_.alltoall_base(mine, input, in, out)->wait();

    std::int64_t row = static_cast<std::int64_t>(input.element_size());
    for (const auto size : shape) row *= size;
    auto in_bytes = in, out_bytes = out;
    for (auto& split : in_bytes) split *= row;
    for (auto& split : out_bytes) split *= row;
    Tensor input_bytes = bytes_of(input), theirs = at::zeros({sum(in_bytes)}, at::kByte);
    gloo_.alltoall_base(theirs, input_bytes, in_bytes, out_bytes)->wait();
    EXPECT_TRUE(at::equal(bytes_of(mine), theirs));

    Tensors inputs, outputs;
    std::int64_t at_out = 0, at_in = 0;
    for (std::size_t r = 0; r < count; ++r) {
      inputs.push_back(input.narrow(0, at_out, out[r]));
      outputs.push_back(blank(with_rows(in[r], shape)));
      at_out += out[r];
    }
    mpi_.alltoall(outputs, inputs)->wait();
    for (std::size_t r = 0; r < count; ++r) {
      EXPECT_TRUE(same_bits(outputs[r], mine.narrow(0, at_in, in[r])));
      at_in += in[r];
    }
  }
}

TEST_P(Collectives, SendAndReceiveInARing) {
  const auto shape = values_.shape();
  Tensors input = {values_.any(shape, GetParam())}, output = {blank(shape)};
  const int next = (rank_ + 1) % size_, previous = (rank_ + size_ - 1) % size_;
  const auto sent = mpi_.send(input, next, 5);
  const auto received =
      rank_ % 2 == 0 ? mpi_.recv(output, previous, 5) : mpi_.recvAnysource(output, 5);
  received->wait();
  sent->wait();
  EXPECT_TRUE(same_bits(output[0], everyones(input[0])[static_cast<std::size_t>(previous)]));
  EXPECT_EQ(received->sourceRank(), previous);
}

// What Gloo makes of small whole numbers, in the type of `mine`.
Tensor reduced_by_gloo(c10d::Backend& gloo, const Tensor& mine, ReduceOp::RedOpType op) {
  const auto type = mine.scalar_type();
  const bool complex = at::isComplexType(type);
  const auto wide = complex                    ? at::kComplexDouble
                    : at::isFloatingType(type) ? at::kDouble
                                               : at::kLong;
  Tensor wider = mine.to(wide).contiguous().clone();
  Tensors tensors = {complex ? at::view_as_real(wider) : wider};
  c10d::AllreduceOptions options;
  options.reduceOp = op == ReduceOp::AVG ? ReduceOp::SUM : op;
  gloo.allreduce(tensors, options)->wait();
  if (op == ReduceOp::AVG) tensors[0] /= gloo.getSize();
  return type == at::kBool ? wider.ne(0) : wider.to(type);
}

std::vector<ReduceOp::RedOpType> operations_on(at::ScalarType type) {
  if (at::isComplexType(type)) return {ReduceOp::SUM, ReduceOp::AVG};
  if (at::isFloatingType(type))
    return {ReduceOp::SUM, ReduceOp::AVG, ReduceOp::PRODUCT, ReduceOp::MIN, ReduceOp::MAX};
  return {ReduceOp::SUM,  ReduceOp::PRODUCT, ReduceOp::MIN, ReduceOp::MAX,
          ReduceOp::BAND, ReduceOp::BOR,     ReduceOp::BXOR};
}

TEST_P(Collectives, ReductionsInEveryForm) {
  for (const auto op : operations_on(GetParam())) {
    for (int trial = 0; trial < 3; ++trial) {
      const auto shape = values_.shape();
      const Tensor whole =
          values_.small(with_rows(size_, shape), GetParam(), op == ReduceOp::PRODUCT);
      const Tensor right = reduced_by_gloo(gloo_, whole, op);
      const auto check = [&](const Tensor& result, const Tensor& expected, const char* form) {
        EXPECT_TRUE(same_bits(result, expected))
            << form << " with operation " << int{op} << " of shape " << expected.sizes();
      };

      Tensors tensors = {values_.lay_out(whole)};
      c10d::AllreduceOptions all;
      all.reduceOp = op;
      mpi_.allreduce(tensors, all)->wait();
      check(tensors[0], right, "allreduce");
      Tensors two = {values_.lay_out(whole), values_.lay_out(whole.select(0, 0))};
      c10d::AllreduceCoalescedOptions coalesced;
      coalesced.reduceOp = op;
      mpi_.allreduce_coalesced(two, coalesced)->wait();
      check(two[0], right, "allreduce_coalesced");
      check(two[1], right.select(0, 0), "allreduce_coalesced");

      Tensors at_root = {values_.lay_out(whole)};
      c10d::ReduceOptions one;
      one.reduceOp = op;
      one.rootRank = values_.below(size_);
      mpi_.reduce(at_root, one)->wait();
      check(at_root[0], one.rootRank == rank_ ? right : whole, "reduce");

      c10d::ReduceScatterOptions scattered;
      scattered.reduceOp = op;
      const Tensor mine = right.select(0, rank_);
      Tensors output = {blank(shape)};
      std::vector<Tensors> lists(1);
      for (int r = 0; r < size_; ++r) lists[0].push_back(whole.select(0, r));
      mpi_.reduce_scatter(output, lists, scattered)->wait();
      check(output[0], mine, "reduce_scatter");
      Tensor base = blank(shape), input = values_.lay_out(whole);
      mpi_._reduce_scatter_base(base, input, scattered)->wait();
      check(base, mine, "_reduce_scatter_base");
      Tensors outputs = {blank(shape), blank(shape)}, inputs = {whole, whole};
      mpi_.reduce_scatter_tensor_coalesced(outputs, inputs, scattered)->wait();
      check(outputs[1], mine, "reduce_scatter_tensor_coalesced");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Collectives, ::testing::ValuesIn(every_type()),
                         [](const auto& type) { return std::string(c10::toString(type.param)); });

class Mpi : public Collectives {};

// Long enough for several pieces of a reduction and several parts of a message, and an odd tail.
TEST_P(Mpi, LongTensorsSumInRankOrder) {
  const auto numel = static_cast<std::int64_t>(mpi::kPart) / 4 * 5 * size_ / 2 + 3;
  Tensors sum = {at::randn({numel}).to(GetParam())};
  const Tensors parts = everyones(sum[0]);
  Tensor expected = parts[0].to(at::kFloat);
  for (std::size_t r = 1; r < parts.size(); ++r) expected = expected + parts[r].to(at::kFloat);
  Tensors at_root = {sum[0].clone()};
  mpi_.allreduce(sum)->wait();
  EXPECT_TRUE(same_bits(sum[0], expected.to(GetParam())));
  c10d::ReduceOptions options;
  options.rootRank = size_ - 1;
  mpi_.reduce(at_root, options)->wait();
  if (rank_ == size_ - 1) {
    EXPECT_TRUE(same_bits(at_root[0], sum[0]));
  }
  Tensors sent = {parts[static_cast<std::size_t>(rank_)].clone()};
  mpi_.broadcast(sent)->wait();
  EXPECT_TRUE(same_bits(sent[0], parts[0]));
}

TEST_P(Mpi, CutMessagesArriveWhole) {
  const auto cut = ranks_.another(1000);
  Tensors tensors = {values_.small({20'003}, GetParam(), false)};
  const Tensor right = reduced_by_gloo(gloo_, tensors[0], ReduceOp::SUM);
  const Tensors parts = everyones(tensors[0]);
  Tensor joined = at::empty({size_ * 20'003}, GetParam());
  cut->_allgather_base(joined, tensors[0])->wait();
  EXPECT_TRUE(same_bits(joined, at::cat(parts)));
  Tensors first = {tensors[0].clone()};
  cut->broadcast(first)->wait();
  EXPECT_TRUE(same_bits(first[0], parts[0]));
  cut->allreduce(tensors)->wait();
  EXPECT_TRUE(same_bits(tensors[0], right));
}

TEST_P(Mpi, PremultipliedSumsUseEachRanksFactor) {
  Tensors tensors = {at::ones({7}, GetParam())};
  c10d::AllreduceOptions options;
  options.reduceOp = c10d::makeNCCLPreMulSum(static_cast<double>(rank_ + 1));
  mpi_.allreduce(tensors, options)->wait();
  EXPECT_TRUE(same_bits(tensors[0], at::full({7}, size_ * (size_ + 1) / 2, GetParam())));
}

INSTANTIATE_TEST_SUITE_P(Types, Mpi, ::testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& type) { return std::string(c10::toString(type.param)); });

}  // namespace
}  // namespace thinwire::comm
