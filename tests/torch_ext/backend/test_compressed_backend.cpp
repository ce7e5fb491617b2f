// Values of every call of a CompressedBackend against Gloo's own, ranks as threads.
#include "thinwire/torch_ext/backend/compressed_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using testing::errors_of;
using ::testing::HasSubstr;
using testing::RankContext;
using testing::run_ranks;
using Tensors = std::vector<at::Tensor>;

c10::intrusive_ptr<CompressedBackend> backend_of(const c10::intrusive_ptr<c10d::ProcessGroup>& g) {
  return c10::dynamic_intrusive_pointer_cast<CompressedBackend>(
      g->getBackend(c10::DeviceType::CPU));
}

// Equal on all ranks but for the rank's own numbers.
at::Tensor values_of(int rank, std::int64_t numel, at::ScalarType type = at::kFloat) {
  const auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(100 + rank));
  if (!at::isFloatingType(type) && !at::isComplexType(type))
    return at::randint(0, 2, {numel}, generator, at::kLong).to(type);
  return at::randn({numel}, generator, at::kFloat).to(type);
}

struct Call {
  const char* name;
  // Runs it on `group` with tensors of `numel` elements and gives what it wrote.
  Tensors (*run)(c10d::ProcessGroup& group, int rank, std::int64_t numel, at::ScalarType type,
                 c10d::ReduceOp op);
  bool reduces;
};

Tensors all_reduce(c10d::ProcessGroup& group, int rank, std::int64_t numel, at::ScalarType type,
                   c10d::ReduceOp op) {
  Tensors tensors = {values_of(rank, numel, type)};
  c10d::AllreduceOptions options;
  options.reduceOp = op;
  group.allreduce(tensors, options)->wait();
  return tensors;
}

Tensors all_reduce_coalesced(c10d::ProcessGroup& group, int rank, std::int64_t numel,
                             at::ScalarType type, c10d::ReduceOp op) {
  Tensors tensors = {values_of(rank, numel, type), values_of(rank + 7, 3, type)};
  c10d::AllreduceCoalescedOptions options;
  options.reduceOp = op;
  group.allreduce_coalesced(tensors, options)->wait();
  return tensors;
}

Tensors reduce_scatter_tensor(c10d::ProcessGroup& group, int rank, std::int64_t numel,
                              at::ScalarType type, c10d::ReduceOp op) {
  at::Tensor in = values_of(rank, numel * group.getSize(), type), out = at::empty({numel}, type);
  c10d::ReduceScatterOptions options;
  options.reduceOp = op;
  group._reduce_scatter_base(out, in, options)->wait();
  return {out};
}

Tensors reduce_scatter_list(c10d::ProcessGroup& group, int rank, std::int64_t numel,
                            at::ScalarType type, c10d::ReduceOp op) {
  Tensors outs = {at::empty({numel}, type)};
  std::vector<Tensors> ins(1);
  for (int r = 0; r < group.getSize(); ++r) ins[0].push_back(values_of(rank + 10 * r, numel, type));
  c10d::ReduceScatterOptions options;
  options.reduceOp = op;
  group.reduce_scatter(outs, ins, options)->wait();
  return outs;
}

Tensors reduce_scatter_coalesced(c10d::ProcessGroup& group, int rank, std::int64_t numel,
                                 at::ScalarType type, c10d::ReduceOp op) {
  Tensors outs = {at::empty({numel}, type), at::empty({2}, type)};
  Tensors ins = {values_of(rank, numel * group.getSize(), type),
                 values_of(rank + 5, 2 * group.getSize(), type)};
  c10d::ReduceScatterOptions options;
  options.reduceOp = op;
  group.reduce_scatter_tensor_coalesced(outs, ins, options)->wait();
  return outs;
}

Tensors all_gather_tensor(c10d::ProcessGroup& group, int rank, std::int64_t numel,
                          at::ScalarType type, c10d::ReduceOp) {
  at::Tensor in = values_of(rank, numel, type), out = at::empty({numel * group.getSize()}, type);
  group._allgather_base(out, in)->wait();
  return {out};
}

Tensors all_gather_list(c10d::ProcessGroup& group, int rank, std::int64_t numel,
                        at::ScalarType type, c10d::ReduceOp) {
  std::vector<Tensors> outs(1);
  for (int r = 0; r < group.getSize(); ++r) outs[0].push_back(at::empty({numel}, type));
  Tensors ins = {values_of(rank, numel, type)};
  group.allgather(outs, ins)->wait();
  return outs[0];
}

Tensors all_gather_coalesced(c10d::ProcessGroup& group, int rank, std::int64_t numel,
                             at::ScalarType type, c10d::ReduceOp) {
  Tensors outs = {at::empty({numel * group.getSize()}, type),
                  at::empty({2 * group.getSize()}, type)};
  Tensors ins = {values_of(rank, numel, type), values_of(rank + 5, 2, type)};
  group.allgather_into_tensor_coalesced(outs, ins)->wait();
  return outs;
}

Tensors all_to_all_even(c10d::ProcessGroup& group, int rank, std::int64_t numel,
                        at::ScalarType type, c10d::ReduceOp) {
  at::Tensor in = values_of(rank, numel * group.getSize(), type), out = at::empty_like(in);
  std::vector<std::int64_t> none;
  group.alltoall_base(out, in, none, none)->wait();
  return {out};
}

// Rank a sends a + 1 times as much to rank b as b has neighbours below, so some parts are empty.
Tensors all_to_all_uneven(c10d::ProcessGroup& group, int rank, std::int64_t numel,
                          at::ScalarType type, c10d::ReduceOp) {
  std::vector<std::int64_t> in_sizes, out_sizes;
  std::int64_t ins = 0, outs = 0;
  for (int r = 0; r < group.getSize(); ++r) {
    in_sizes.push_back(numel * (rank + 1) * r / 4);
    out_sizes.push_back(numel * (r + 1) * rank / 4);
    ins += in_sizes.back();
    outs += out_sizes.back();
  }
  at::Tensor in = values_of(rank, ins, type), out = at::zeros({outs}, type);
  group.alltoall_base(out, in, out_sizes, in_sizes)->wait();
  return {out};
}

const Call kCalls[] = {{"AllReduce", all_reduce, true},
                       {"AllReduceCoalesced", all_reduce_coalesced, true},
                       {"ReduceScatterTensor", reduce_scatter_tensor, true},
                       {"ReduceScatterList", reduce_scatter_list, true},
                       {"ReduceScatterCoalesced", reduce_scatter_coalesced, true},
                       {"AllGatherTensor", all_gather_tensor, false},
                       {"AllGatherList", all_gather_list, false},
                       {"AllGatherCoalesced", all_gather_coalesced, false},
                       {"AllToAllEven", all_to_all_even, false},
                       {"AllToAllUneven", all_to_all_uneven, false}};

class Values : public ::testing::TestWithParam<Call> {};

std::uint64_t coded_calls(const BackendStatistics& statistics) {
  std::uint64_t sum = 0;
  for (const auto& [name, operation] : statistics.operations) sum += operation.coded;
  return sum;
}

// Whatever no codec may touch has Gloo's own bits.
TEST_P(Values, UntouchedAreGloosBits) {
  const Call& call = GetParam();
  for (const int world : {2, 3}) {
    run_ranks(world, [&](RankContext& ctx) {
      const auto none = compressed_group(ctx.group, {.compression = "none"});
      for (const auto type :
           {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kByte}) {
        const auto want = call.run(*ctx.group, ctx.rank, 3000, type, c10d::ReduceOp::SUM);
        const auto have = call.run(*none, ctx.rank, 3000, type, c10d::ReduceOp::SUM);
        for (std::size_t i = 0; i < want.size(); ++i)
          EXPECT_TRUE(at::equal(want[i], have[i])) << toString(type);
      }
      EXPECT_EQ(coded_calls(backend_of(none)->statistics()), 0);
    });
  }
}

TEST_P(Values, SmallOnesIntegersAndOtherOperationsStayExactWithACodec) {
  const Call& call = GetParam();
  run_ranks(3, [&](RankContext& ctx) {
    const auto group = compressed_group(ctx.group, {"quantize(bits=2, rounding=stochastic)",
                                                    "quantize(bits=2)", "quantize(bits=2)"});
    const auto expect_equal = [&](std::int64_t numel, at::ScalarType type, c10d::ReduceOp op) {
      const auto want = call.run(*ctx.group, ctx.rank, numel, type, op);
      const auto have = call.run(*group, ctx.rank, numel, type, op);
      for (std::size_t i = 0; i < want.size(); ++i)
        EXPECT_TRUE(at::equal(want[i], have[i])) << toString(type) << " " << numel;
    };
    expect_equal(100, at::kFloat, c10d::ReduceOp::SUM);
    expect_equal(3000, at::kLong, c10d::ReduceOp::SUM);
    expect_equal(3000, at::kByte, c10d::ReduceOp::SUM);
    if (call.reduces) {
      expect_equal(3000, at::kFloat, c10d::ReduceOp::MAX);
      expect_equal(3000, at::kDouble, c10d::ReduceOp::MIN);
    }
  });
}

// Eight bits are close to the exact result, and that the codec ran shows in what was sent.
TEST_P(Values, CodedOnesAreNearGloosAndSendLess) {
  const Call& call = GetParam();
  for (const int world : {2, 3}) {
    run_ranks(world, [&](RankContext& ctx) {
      const auto group =
          compressed_group(ctx.group, {"quantize(bits=8)", "quantize(bits=8)", "quantize(bits=8)"});
      int calls = 0;
      for (const auto type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
        const auto want = call.run(*ctx.group, ctx.rank, 5000, type, c10d::ReduceOp::SUM);
        const auto have = call.run(*group, ctx.rank, 5000, type, c10d::ReduceOp::SUM);
        ++calls;
        for (std::size_t i = 0; i < want.size(); ++i) {
          EXPECT_EQ(want[i].sizes(), have[i].sizes());
          EXPECT_EQ(want[i].scalar_type(), have[i].scalar_type());
          if (want[i].numel() == 0) continue;
          const double error =
              (want[i].to(at::kDouble) - have[i].to(at::kDouble)).abs().max().item<double>();
          EXPECT_LT(error, 0.15) << toString(type);
        }
      }
      const auto statistics = backend_of(group)->statistics();
      EXPECT_EQ(coded_calls(statistics), calls);
      for (const auto& [name, operation] : statistics.operations) {
        if (operation.dense_bytes == 0) continue;
        EXPECT_LT(operation.sent_bytes, operation.dense_bytes * 7 / 10) << name;
      }
    });
  }
}

TEST_P(Values, AverageIsTheSumDivided) {
  const Call& call = GetParam();
  if (!call.reduces) return;
  run_ranks(3, [&](RankContext& ctx) {
    const auto group = compressed_group(ctx.group, {.compression = "quantize(bits=8)"});
    const auto sum = call.run(*ctx.group, ctx.rank, 5000, at::kFloat, c10d::ReduceOp::SUM);
    const auto mean = call.run(*group, ctx.rank, 5000, at::kFloat, c10d::ReduceOp::AVG);
    EXPECT_LT((sum[0] / 3 - mean[0]).abs().max().item<float>(), 0.05);
  });
}

INSTANTIATE_TEST_SUITE_P(CompressedBackend, Values, ::testing::ValuesIn(kCalls),
                         [](const auto& tested) { return tested.param.name; });

// What an all_reduce or an all_gather gives is the same on all ranks, bit for bit.
TEST(CompressedBackend, ReplicasAreBitEqual) {
  run_ranks(3, [](RankContext& ctx) {
    const auto group =
        compressed_group(ctx.group, {"quantize(bits=3)", "quantize(bits=3)", "none"});
    for (const auto& call : {kCalls[0], kCalls[1], kCalls[5], kCalls[7]}) {
      const auto mine = call.run(*group, ctx.rank, 4000, at::kFloat, c10d::ReduceOp::SUM);
      std::vector<Tensors> all(1);
      for (int r = 0; r < ctx.size; ++r) all[0].push_back(at::empty_like(mine[0]));
      Tensors in = {mine[0]};
      ctx.group->allgather(all, in)->wait();
      for (const at::Tensor& other : all[0]) EXPECT_TRUE(at::equal(other, mine[0])) << call.name;
    }
  });
}

TEST(CompressedBackend, StridedTensorsAndThoseWithGradientsAreTaken) {
  run_ranks(2, [](RankContext& ctx) {
    const auto group = compressed_group(ctx.group, {.compression = "quantize(bits=8)"});
    at::Tensor whole = values_of(ctx.rank, 8000).view({100, 80});
    const at::Tensor exact = values_of(0, 8000) + values_of(1, 8000);
    Tensors strided = {whole.t()};
    group->allreduce(strided)->wait();
    EXPECT_LT((whole.flatten() - exact).abs().max().item<float>(), 0.1);
    Tensors leaf = {values_of(ctx.rank, 8000).requires_grad_()};
    group->allreduce(leaf)->wait();
    EXPECT_LT((leaf[0].detach() - exact).abs().max().item<float>(), 0.1);
  });
}

TEST(CompressedBackend, WorksHaveFuturesResultsAndTitles) {
  run_ranks(2, [](RankContext& ctx) {
    const auto group = compressed_group(ctx.group, {.compression = "quantize(bits=8)"});
    Tensors tensors = {values_of(ctx.rank, 5000)};
    std::vector<c10::intrusive_ptr<c10d::Work>> works;
    for (int i = 0; i < 5; ++i) works.push_back(group->allreduce(tensors));
    for (const auto& work : works) {
      work->getFuture()->wait();
      EXPECT_TRUE(work->isCompleted());
      EXPECT_TRUE(work->isSuccess());
      EXPECT_TRUE(work->result()[0].is_same(tensors[0]));
      EXPECT_EQ(work->retrieveOpType(), c10d::OpType::ALLREDUCE);
    }
    // A barrier comes after the calls before it.
    const auto last = group->allreduce(tensors);
    group->barrier()->wait();
    EXPECT_TRUE(last->isCompleted());
  });
}

TEST(CompressedBackend, SplitsAndDuplicatesWork) {
  run_ranks(3, [](RankContext& ctx) {
    const auto group = compressed_group(ctx.group, {.compression = "quantize(bits=8)"});
    const auto backend = backend_of(group);
    ASSERT_TRUE(backend->supportsSplitting());
    const std::vector<int> ranks = {0, 2};
    const auto part = backend->split(c10::make_intrusive<c10d::PrefixStore>("part", ctx.store),
                                     ranks, backend->getBackendOptions());
    if (ctx.rank != 1) {
      ASSERT_NE(part, nullptr);
      EXPECT_EQ(part->getSize(), 2);
      Tensors tensors = {values_of(ctx.rank, 5000)};
      part->allreduce(tensors, {})->wait();
      const at::Tensor exact = values_of(0, 5000) + values_of(2, 5000);
      EXPECT_LT((tensors[0] - exact).abs().max().item<float>(), 0.1);
      EXPECT_EQ(backend_of(group)->statistics().operations.at("all_reduce").coded, 0);
    } else {
      EXPECT_EQ(part, nullptr);
    }
    // A duplicate is for messages that are coded already.
    const auto copy = comm::duplicate(group, "copy");
    EXPECT_EQ(copy->getDefaultBackend()->getBackendName(), "gloo");
    const auto want = all_reduce(*ctx.group, ctx.rank, 5000, at::kFloat, c10d::ReduceOp::SUM);
    const auto have = all_reduce(*copy, ctx.rank, 5000, at::kFloat, c10d::ReduceOp::SUM);
    EXPECT_TRUE(at::equal(want[0], have[0]));
  });
}

TEST(CompressedBackend, OptionsThatDifferAreRefusedOnAllRanks) {
  const auto errors = [](const std::function<void(int, BackendOptions&)>& change) {
    return errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
      BackendOptions options;
      change(ctx.rank, options);
      compressed_group(ctx.group, options);
    });
  };
  EXPECT_THAT(errors([](int rank, auto& o) { o.compression = rank ? "none" : "topk"; }),
              Each(HasSubstr("the compression of the process group")));
  EXPECT_THAT(errors([](int rank, auto& o) { o.min_numel = 5 + rank; }),
              Each(HasSubstr("min_numel")));
  EXPECT_THAT(errors([](int, auto& o) { o.compression = "quantise"; }),
              Each(HasSubstr("quantize")));
  for (const char* policy : {"lgreco", "auto"}) {
    EXPECT_THAT(errors([policy](int, auto& o) { o.compression = policy; }),
                Each(HasSubstr("a process group takes a codec")));
  }
  EXPECT_THAT(errors([](int, auto& o) { o.all_to_all = "topk"; }),
              Each(HasSubstr("all_to_all has no feedback")));
}

TEST(CompressedBackend, RanksInDifferentCallsAreNamed) {
  // Both coded: known before anything is sent.
  EXPECT_THAT(errors_of<InvalidArgument>(2,
                                         [](RankContext& ctx) {
                                           const auto group = compressed_group(
                                               ctx.group, {.compression = "quantize(bits=8)"});
                                           reduce_scatter_tensor(*group, ctx.rank,
                                                                 2000 + 1000 * ctx.rank, at::kFloat,
                                                                 c10d::ReduceOp::SUM);
                                         }),
              Each(AllOf(HasSubstr("[2000]"), HasSubstr("[3000]"), HasSubstr("rank 1"))));
  // One coded, one not.
  EXPECT_THAT(errors_of<InvalidArgument>(2,
                                         [](RankContext& ctx) {
                                           const auto group = compressed_group(
                                               ctx.group, {.compression = "quantize(bits=8)"});
                                           all_reduce(*group, ctx.rank, ctx.rank == 0 ? 5000 : 50,
                                                      at::kFloat, c10d::ReduceOp::SUM);
                                         }),
              Each(AllOf(HasSubstr("[5000] by quantize"), HasSubstr("on rank 0"),
                         HasSubstr("[50], uncompressed on rank 1"))));
}

}  // namespace
}  // namespace thinwire
