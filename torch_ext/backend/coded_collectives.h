// Collectives whose tensors travel as payloads of a codec: those that are not an average.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/plan.h"
#include "thinwire/comm/average/reduce/frames.h"
#include "thinwire/comm/wire/peers.h"

namespace thinwire::detail {

// One call. `text` is what the ranks must agree on.
struct CodedCall {
  const comm::LayerSetting* setting = nullptr;
  std::string key = {};  // of the feedback; empty: none
  std::string text = {};
  std::uint64_t step = 0;  // for the codec's random numbers
};

// All functions are collective, take CPU tensors of a floating type (float32 inside) and return the
// bytes that this rank handed to the network. They throw, on every rank: InvalidArgument where the
// ranks make different calls, FrameError for a damaged message, CommError where a rank is gone.
// Not thread-safe: one communication thread owns it, and the group.
class CodedCollectives {
 public:
  CodedCollectives(c10::intrusive_ptr<c10d::ProcessGroup> group, std::uint64_t seed);

  // out = sum (or mean) over the ranks of their parts[this rank]. Each rank encodes the parts of
  // the others once; its own is added as it is, in rank order. With a key, what encoding lost is
  // added to the next call's parts; a call with a value that is not finite on any rank leaves that
  // as it was.
  std::size_t reduce_scatter(const CodedCall& call, const std::vector<at::Tensor>& parts,
                             at::Tensor& out, bool mean);

  // outs[r] = decoded values of rank r, the same bits on all ranks, r itself included. With a key,
  // what travels is the difference to what the ranks received under this key before, so that
  // errors do not last; the first call is exact, and every rank keeps all that it received.
  std::size_t all_gather(const CodedCall& call, const at::Tensor& in,
                         const std::vector<at::Tensor>& outs);

  // outs[r] = decoded ins of rank r for this rank. What a rank has for itself, and parts of fewer
  // than min_numel elements, are exact.
  std::size_t all_to_all(const CodedCall& call, const std::vector<at::Tensor>& ins,
                         const std::vector<at::Tensor>& outs, std::int64_t min_numel);

  // What is kept, by key.
  struct Memory {
    std::map<std::string, std::vector<float>> residuals;  // W - 1 parts of the others, by rank
    std::map<std::string, std::vector<float>> received;   // W parts, the same on all ranks
  };
  // The same as flat float32 tensors: "residual/KEY" and "received/KEY".
  std::map<std::string, at::Tensor> state() const;
  // Throws InvalidArgument for a tensor that state() does not give.
  static Memory memory_of(const std::map<std::string, at::Tensor>& state);
  void load(Memory memory) { memory_ = std::move(memory); }

 private:
  using Headers = std::vector<FrameHeader>;

  comm::ReductionContext begin(const CodedCall& call, comm::Refusal& refusal);
  std::size_t agree(const CodedCall& call, const comm::Refusal& refusal);
  std::vector<float>& kept(std::map<std::string, std::vector<float>>& memory, const CodedCall& call,
                           std::size_t numel);

  const c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const comm::Peers peers_;
  const std::uint64_t seed_;
  std::uint64_t sequence_ = 0;
  Memory memory_;
  comm::Workspace workspace_;
  std::vector<comm::FrameBuffer> frames_;
};

}  // namespace thinwire::detail
