#include "thinwire/comm/link/link_probe.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"
#include "thinwire/common/median.h"
#include "thinwire/common/philox.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/compressors/codecs/powersgd.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {
namespace {

void meet(c10d::ProcessGroup& group) {
  std::vector<at::Tensor> tensors = {at::zeros({1})};
  wait(group, group.allreduce(tensors), "link probe", 0);
}

// Times `call(numel)` for growing sizes; `sent` says how many bytes a rank sends of a tensor. All
// ranks take part in all calls and stop at the same size.
std::vector<TimedCall> time_sizes(c10d::ProcessGroup& group, const ProbeOptions& options,
                                  const std::function<double(double)>& sent,
                                  const std::function<double(std::int64_t)>& call) {
  std::vector<TimedCall> calls;
  for (std::int64_t bytes = options.smallest; bytes <= options.largest; bytes *= 4) {
    // A multiple of the ranks, so that every rank's part has the same size.
    const std::int64_t step = 4 * group.getSize();
    const std::int64_t tensor = (bytes + step - 1) / step * step;
    for (int i = 0; i < options.warmup; ++i) {
      meet(group);
      call(tensor);
    }
    std::vector<double> seconds;
    for (int i = 0; i < options.repeats; ++i) {
      meet(group);
      seconds.push_back(call(tensor));
    }
    take_largest(group, seconds);
    for (const double s : seconds) calls.push_back({sent(static_cast<double>(tensor)), s});
    if (median(seconds) >= options.enough_seconds) break;
  }
  return calls;
}

AlphaBeta probe_collective(c10d::ProcessGroup& group, Collective collective,
                           const ProbeOptions& options) {
  const int world = group.getSize();
  const at::Tensor memory = at::zeros({options.largest + 4 * world}, at::kByte);
  // Gathered tensors are `world` times as long: their inputs are that much shorter.
  const at::Tensor received = at::zeros({options.largest + 4 * world}, at::kByte);
  const auto call = [&](std::int64_t bytes) {
    const auto begin = Clock::now();
    c10::intrusive_ptr<c10d::Work> work;
    std::vector<at::Tensor> tensors = {memory.narrow(0, 0, bytes)};
    at::Tensor into = received.narrow(0, 0, bytes);
    switch (collective) {
      case Collective::kAllReduce:
        tensors[0] = tensors[0].view(at::kFloat);
        work = group.allreduce(tensors);
        break;
      case Collective::kAllToAll: {
        std::vector<std::int64_t> even;
        work = group.alltoall_base(into, tensors[0], even, even);
        break;
      }
      case Collective::kAllGather: {
        at::Tensor part = tensors[0].narrow(0, 0, bytes / world);
        work = group._allgather_base(into, part);
        break;
      }
      case Collective::kBroadcast:
        work = group.broadcast(tensors);
        break;
    }
    wait(group, work, std::string(name_of(collective)), 0);
    return seconds_since(begin);
  };
  const auto sent = [&](double bytes) {
    return sent_bytes(collective, collective == Collective::kAllGather ? bytes / world : bytes,
                      world);
  };
  return fit_alpha_beta(time_sizes(group, options, sent, call));
}

// One direction of a pair: `from` sends, `to` answers with one byte. The time of a round trip of
// one byte is measured first, so that only half of it counts as latency.
AlphaBeta probe_pair(c10d::ProcessGroup& group, int from, int to, const ProbeOptions& options) {
  const int rank = group.getRank();
  const at::Tensor memory = at::zeros({options.largest + 4 * group.getSize()}, at::kByte);
  at::Tensor answer = at::zeros({1}, at::kByte);
  const auto round_trip = [&](std::int64_t bytes) {
    std::vector<at::Tensor> payload = {memory.narrow(0, 0, bytes)};
    std::vector<at::Tensor> short_answer = {answer};
    const auto begin = Clock::now();
    if (rank == from) {
      wait(group, group.send(payload, to, 0), "send", 0);
      wait(group, group.recv(short_answer, to, 1), "receive", 0);
    } else if (rank == to) {
      wait(group, group.recv(payload, from, 0), "receive", 0);
      wait(group, group.send(short_answer, from, 1), "send", 0);
    }
    // The receiver's clock also waits for the sender to start; the others do nothing.
    return rank == from ? seconds_since(begin) : 1e-9;
  };
  const auto bytes_alone = [](double bytes) { return bytes; };
  ProbeOptions empty = options;
  empty.smallest = empty.largest = 1;
  double latency = 0;
  {
    std::vector<double> seconds;
    for (const TimedCall& call : time_sizes(group, empty, bytes_alone, round_trip)) {
      seconds.push_back(call.seconds);
    }
    latency = median(std::move(seconds)) / 2;
  }
  auto calls = time_sizes(group, options, bytes_alone, round_trip);
  // The answer takes no longer than the way there, however disturbed its own measurement was.
  for (TimedCall& call : calls) call.seconds -= std::min(latency, call.seconds / 2);
  return fit_alpha_beta(calls);
}

}  // namespace

void take_largest(c10d::ProcessGroup& group, std::span<double> values) {
  if (group.getSize() == 1 || values.empty()) return;
  // A tensor of its own: where another rank fails, wait() leaves before the backend has finished
  // with the memory.
  std::vector<at::Tensor> tensors = {
      at::empty({static_cast<std::int64_t>(values.size())}, at::kDouble)};
  std::ranges::copy(values, tensors[0].mutable_data_ptr<double>());
  c10d::AllreduceOptions options;
  options.reduceOp = c10d::ReduceOp::MAX;
  wait(group, group.allreduce(tensors, options), "link probe", 0);
  std::copy_n(tensors[0].const_data_ptr<double>(), values.size(), values.begin());
}

BackendLink probe_backend(c10d::ProcessGroup& group, const ProbeOptions& options) {
  const int world = group.getSize();
  check(world >= 2, "a link needs at least two ranks, this job has ", world);
  check(backend_name(group) != "nccl",
        "the link probe sends tensors of the host, which nccl does not take; use gloo or mpi");
  const auto report = [&](const std::string& what) {
    if (options.progress) options.progress(what);
  };
  BackendLink link;
  for (const Collective collective : kCollectives) {
    report(std::string(name_of(collective)));
    link.collectives[static_cast<std::size_t>(collective)] =
        probe_collective(group, collective, options);
  }
  if (!options.pairs) return link;
  link.pairs.assign(static_cast<std::size_t>(world),
                    std::vector<AlphaBeta>(static_cast<std::size_t>(world)));
  for (int from = 0; from < world; ++from) {
    for (int to = 0; to < world; ++to) {
      if (from == to) continue;
      report(concat("ranks ", from, " and ", to));
      link.pairs[static_cast<std::size_t>(from)][static_cast<std::size_t>(to)] =
          probe_pair(group, from, to, options);
    }
  }
  return link;
}

CodecCost time_codec(const Codec& codec, std::int64_t bytes, int repeats,
                     const std::function<void()>& before) {
  check(bytes >= 4 && repeats >= 1, "a codec is measured on at least 4 bytes and once, not on ",
        bytes, " bytes and ", repeats, " times");
  const auto side = static_cast<std::int64_t>(std::sqrt(static_cast<double>(bytes) / 4));
  const std::array<std::int64_t, 2> shape = {side, side};
  std::vector<float> values(static_cast<std::size_t>(side * side)), decoded(values.size());
  init_factor({.seed = 1}, side * side, 0, 1, values);
  ConstTensorView input = view_of(std::span<const float>(values));
  TensorView output = view_of(std::span<float>(decoded));
  input.shape = output.shape = shape;
  std::vector<std::byte> payload(codec.max_compressed_bytes(side * side, DType::kFloat32));
  const RandomKey key = {.seed = 1, .layer = 1};
  std::size_t size = 0;
  const auto per_byte = [&](const std::function<void()>& action) {
    std::vector<double> seconds;
    action();
    if (before) before();
    for (int i = 0; i < repeats; ++i) {
      const auto begin = Clock::now();
      action();
      seconds.push_back(seconds_since(begin));
    }
    return median(std::move(seconds)) / static_cast<double>(side * side * 4);
  };
  // With error feedback, what is added before the encoding and subtracted after it belongs to it.
  std::vector<float> carried(codec.traits().needs_error_feedback ? values.size() : 0);
  std::vector<float> residual(carried.size());
  TensorView corrected = view_of(std::span<float>(residual));
  corrected.shape = shape;
  CodecCost cost;
  cost.compress = per_byte([&] {
    if (residual.empty()) {
      size = codec.compress(input, key, payload);
      return;
    }
    kernels::add_scaled(values.data(), carried.data(), 1, residual);
    size = codec.compress_and_subtract(corrected, key, payload);
  });
  cost.decompress = per_byte(
      [&] { codec.decompress(std::span(payload).first(size), key, output, WriteMode::kAssign); });
  cost.accumulate = per_byte([&] {
    codec.decompress(std::span(payload).first(size), key, output, WriteMode::kAccumulate);
  });
  return cost;
}

CodecCost probe_codec(c10d::ProcessGroup& group, const Codec& codec, std::int64_t bytes,
                      int repeats) {
  const CodecCost own = time_codec(codec, bytes, repeats, [&] { meet(group); });
  std::array<double, 3> costs = {own.compress, own.decompress, own.accumulate};
  take_largest(group, costs);
  return {costs[0], costs[1], costs[2]};
}

}  // namespace thinwire::comm
