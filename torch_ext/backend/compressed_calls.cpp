// The collectives of a CompressedBackend: which go through a codec, and what the wrapped backend
// makes of the others.
#include <algorithm>
#include <numeric>
#include <span>
#include <utility>

#include "thinwire/common/error.h"
#include "thinwire/torch_ext/backend/backend_engine.h"
#include "thinwire/torch_ext/backend/compressed_backend.h"

namespace thinwire {
namespace {

using c10d::OpType;

bool is_sum(const c10d::ReduceOp& op) {
  return op == c10d::ReduceOp::SUM || op == c10d::ReduceOp::AVG;
}

std::string call_text(const char* operation, const comm::LayerSetting& setting,
                      std::span<const at::Tensor> tensors, const std::string& key) {
  std::string text = concat(operation, " of ");
  for (const at::Tensor& tensor : tensors) {
    text += concat(&tensor == tensors.data() ? "" : ", ", toString(tensor.scalar_type()), " ",
                   tensor.sizes());
  }
  text += concat(" by ", setting.text());
  return key.empty() ? text : concat(text, ", feedback key '", key, "'");
}

std::uint64_t bytes_of(const std::vector<at::Tensor>& tensors) {
  std::uint64_t bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += tensor.nbytes();
  return bytes;
}

// Views of the parts of a tensor along its first dimension, where it is contiguous; else copies,
// which is right for what is read.
std::vector<at::Tensor> equal_parts(const at::Tensor& tensor, int parts) {
  return tensor.detach().contiguous().view({parts, -1}).unbind(0);
}

std::vector<at::Tensor> rows_of(const at::Tensor& tensor, const std::vector<std::int64_t>& sizes,
                                int parts) {
  const at::Tensor whole = tensor.detach().contiguous();
  if (!sizes.empty()) return whole.split_with_sizes(sizes, 0);
  return whole.split_with_sizes(
      std::vector<std::int64_t>(static_cast<std::size_t>(parts), whole.size(0) / parts), 0);
}

}  // namespace

c10::intrusive_ptr<c10d::Work> CompressedBackend::allreduce(Tensors& tensors,
                                                            const c10d::AllreduceOptions& options) {
  if (tensors.size() != 1 || options.sparseIndices) return inner_->allreduce(tensors, options);
  const at::Tensor& tensor = tensors[0];
  if (!codes(Kind::kAllReduce, settings_.reduce, tensor, is_sum(options.reduceOp))) {
    return exact(Kind::kAllReduce, settings_.reduce, tensor, inner_->allreduce(tensors, options));
  }
  const std::string key = FeedbackKey::current();
  return coded(Kind::kAllReduce, OpType::ALLREDUCE, tensors, tensors,
               call_text("all_reduce", settings_.reduce, tensors, key),
               comm::ring_bytes(static_cast<std::int64_t>(tensor.nbytes()), getSize()), {},
               [this, tensors, key, mean = options.reduceOp == c10d::ReduceOp::AVG] {
                 return engine_->all_reduce(tensors, mean, key);
               });
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::allreduce_coalesced(
    Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) {
  Tensors large, rest;
  const bool one_type = std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& tensor) {
    return tensor.scalar_type() == tensors.front().scalar_type();
  });
  for (const at::Tensor& tensor : tensors) {
    const bool codable =
        one_type && codes(Kind::kAllReduce, settings_.reduce, tensor, is_sum(options.reduceOp));
    (codable ? large : rest).push_back(tensor);
  }
  if (large.empty()) {
    WorkPtr work = inner_->allreduce_coalesced(tensors, options);
    return tensors.empty() ? work
                           : exact(Kind::kAllReduce, settings_.reduce, tensors[0], std::move(work));
  }
  const WorkPtr small = rest.empty() ? WorkPtr() : inner_->allreduce_coalesced(rest, options);
  const std::string key = FeedbackKey::current();
  return coded(Kind::kAllReduce, OpType::ALLREDUCE_COALESCED, tensors, tensors,
               call_text("all_reduce", settings_.reduce, large, key),
               comm::ring_bytes(static_cast<std::int64_t>(bytes_of(large)), getSize()), small,
               [this, large, key, mean = options.reduceOp == c10d::ReduceOp::AVG] {
                 return engine_->all_reduce(large, mean, key);
               });
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::reduce_scatter_parts(const Tensors& outs,
                                                                       const TensorLists& parts,
                                                                       bool mean, OpType type,
                                                                       WorkPtr rest) {
  const std::string key = FeedbackKey::current();
  const std::string text = call_text("reduce_scatter", settings_.reduce, outs, key);
  const std::uint64_t dense = bytes_of(outs) * static_cast<std::uint64_t>(getSize() - 1);
  return coded(
      Kind::kReduceScatter, type, parts[0], outs, text, dense, std::move(rest),
      [this, outs, parts, mean, key, text] {
        std::uint64_t sent = 0;
        for (std::size_t i = 0; i < outs.size(); ++i) {
          const std::string name = key.empty() || outs.size() == 1 ? key : concat(key, "/", i);
          at::Tensor out = outs[i];
          sent += engine_->collectives().reduce_scatter(
              {&settings_.reduce, name, text, engine_->next_step("reduce_scatter/" + name)},
              parts[i], out, mean);
        }
        return sent;
      });
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::reduce_scatter(
    Tensors& outs, TensorLists& ins, const c10d::ReduceScatterOptions& options) {
  const bool usual = outs.size() == 1 && ins.size() == 1 &&
                     ins[0].size() == static_cast<std::size_t>(getSize()) &&
                     std::all_of(ins[0].begin(), ins[0].end(), [&](const at::Tensor& part) {
                       return is_codable(part) && part.sizes() == outs[0].sizes() &&
                              part.scalar_type() == outs[0].scalar_type();
                     });
  if (!usual || !codes(Kind::kReduceScatter, settings_.reduce, outs[0], is_sum(options.reduceOp))) {
    WorkPtr work = inner_->reduce_scatter(outs, ins, options);
    return usual ? exact(Kind::kReduceScatter, settings_.reduce, outs[0], std::move(work)) : work;
  }
  return reduce_scatter_parts(outs, ins, options.reduceOp == c10d::ReduceOp::AVG,
                              OpType::REDUCE_SCATTER, {});
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::_reduce_scatter_base(
    at::Tensor& out, at::Tensor& in, const c10d::ReduceScatterOptions& options) {
  const bool usual = in.numel() == out.numel() * getSize() && in.scalar_type() == out.scalar_type();
  if (!usual || !codes(Kind::kReduceScatter, settings_.reduce, out, is_sum(options.reduceOp))) {
    return exact(Kind::kReduceScatter, settings_.reduce, out,
                 inner_->_reduce_scatter_base(out, in, options));
  }
  return reduce_scatter_parts({out}, {equal_parts(in, getSize())},
                              options.reduceOp == c10d::ReduceOp::AVG, OpType::_REDUCE_SCATTER_BASE,
                              {});
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::reduce_scatter_tensor_coalesced(
    Tensors& outs, Tensors& ins, const c10d::ReduceScatterOptions& options) {
  Tensors large, small_outs, small_ins;
  TensorLists parts;
  for (std::size_t i = 0; i < outs.size(); ++i) {
    const bool usual = i < ins.size() && ins[i].numel() == outs[i].numel() * getSize() &&
                       ins[i].scalar_type() == outs[i].scalar_type();
    if (usual && codes(Kind::kReduceScatter, settings_.reduce, outs[i], is_sum(options.reduceOp))) {
      large.push_back(outs[i]);
      parts.push_back(equal_parts(ins[i], getSize()));
    } else {
      small_outs.push_back(outs[i]);
      if (i < ins.size()) small_ins.push_back(ins[i]);
    }
  }
  if (large.empty()) {
    WorkPtr work = inner_->reduce_scatter_tensor_coalesced(outs, ins, options);
    return outs.empty() ? work
                        : exact(Kind::kReduceScatter, settings_.reduce, outs[0], std::move(work));
  }
  WorkPtr rest;
  if (!small_outs.empty())
    rest = inner_->reduce_scatter_tensor_coalesced(small_outs, small_ins, options);
  return reduce_scatter_parts(large, parts, options.reduceOp == c10d::ReduceOp::AVG,
                              OpType::_REDUCE_SCATTER_BASE, std::move(rest));
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::all_gather_parts(const TensorLists& outs,
                                                                   const Tensors& ins,
                                                                   Tensors results, OpType type,
                                                                   WorkPtr rest) {
  const std::string key = FeedbackKey::current();
  const std::string text = call_text("all_gather", settings_.all_gather, ins, key);
  const std::uint64_t dense = bytes_of(ins) * static_cast<std::uint64_t>(getSize() - 1);
  return coded(
      Kind::kAllGather, type, ins, std::move(results), text, dense, std::move(rest),
      [this, outs, ins, key, text] {
        std::uint64_t sent = 0;
        for (std::size_t i = 0; i < ins.size(); ++i) {
          const std::string name = key.empty() || ins.size() == 1 ? key : concat(key, "/", i);
          sent += engine_->collectives().all_gather(
              {&settings_.all_gather, name, text, engine_->next_step("all_gather/" + name)}, ins[i],
              outs[i]);
        }
        return sent;
      });
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::allgather(TensorLists& outs, Tensors& ins,
                                                            const c10d::AllgatherOptions& options) {
  const bool usual = outs.size() == 1 && ins.size() == 1 &&
                     outs[0].size() == static_cast<std::size_t>(getSize()) &&
                     std::all_of(outs[0].begin(), outs[0].end(), [&](const at::Tensor& out) {
                       return is_codable(out) && out.sizes() == ins[0].sizes() &&
                              out.scalar_type() == ins[0].scalar_type();
                     });
  if (!usual || !codes(Kind::kAllGather, settings_.all_gather, ins[0])) {
    WorkPtr work = inner_->allgather(outs, ins, options);
    return usual ? exact(Kind::kAllGather, settings_.all_gather, ins[0], std::move(work)) : work;
  }
  return all_gather_parts(outs, ins, outs[0], OpType::ALLGATHER, {});
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::_allgather_base(
    at::Tensor& out, at::Tensor& in, const c10d::AllgatherOptions& options) {
  const bool usual = out.numel() == in.numel() * getSize() && out.is_contiguous() &&
                     out.scalar_type() == in.scalar_type();
  if (!usual || !codes(Kind::kAllGather, settings_.all_gather, in)) {
    return exact(Kind::kAllGather, settings_.all_gather, in,
                 inner_->_allgather_base(out, in, options));
  }
  return all_gather_parts({equal_parts(out, getSize())}, {in}, {out}, OpType::_ALLGATHER_BASE, {});
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::allgather_coalesced(
    TensorLists& outs, Tensors& ins, const c10d::AllgatherOptions& options) {
  // c10d keeps it for old programs only: outs[r][i] is rank r's ins[i].
  const bool usual = outs.size() == static_cast<std::size_t>(getSize()) && !ins.empty() &&
                     std::all_of(outs.begin(), outs.end(), [&](const Tensors& of_rank) {
                       return of_rank.size() == ins.size();
                     });
  TensorLists by_input;
  Tensors results;
  bool all_coded = usual;
  for (std::size_t i = 0; i < ins.size() && all_coded; ++i) {
    by_input.emplace_back();
    for (const Tensors& of_rank : outs) {
      by_input.back().push_back(of_rank[i]);
      results.push_back(of_rank[i]);
      all_coded = all_coded && is_codable(of_rank[i]) && of_rank[i].sizes() == ins[i].sizes();
    }
    all_coded = all_coded && codes(Kind::kAllGather, settings_.all_gather, ins[i]);
  }
  if (all_coded) return all_gather_parts(by_input, ins, results, OpType::ALLGATHER_COALESCED, {});
  WorkPtr work = inner_->allgather_coalesced(outs, ins, options);
  return usual ? exact(Kind::kAllGather, settings_.all_gather, ins[0], std::move(work)) : work;
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::allgather_into_tensor_coalesced(
    Tensors& outs, Tensors& ins, const c10d::AllgatherOptions& options) {
  Tensors large, small_outs, small_ins;
  TensorLists parts;
  for (std::size_t i = 0; i < ins.size(); ++i) {
    const bool usual = i < outs.size() && outs[i].numel() == ins[i].numel() * getSize() &&
                       outs[i].is_contiguous() && outs[i].scalar_type() == ins[i].scalar_type();
    if (usual && codes(Kind::kAllGather, settings_.all_gather, ins[i])) {
      large.push_back(ins[i]);
      parts.push_back(equal_parts(outs[i], getSize()));
    } else {
      small_ins.push_back(ins[i]);
      if (i < outs.size()) small_outs.push_back(outs[i]);
    }
  }
  if (large.empty()) {
    WorkPtr work = inner_->allgather_into_tensor_coalesced(outs, ins, options);
    return ins.empty() ? work
                       : exact(Kind::kAllGather, settings_.all_gather, ins[0], std::move(work));
  }
  WorkPtr rest;
  if (!small_ins.empty())
    rest = inner_->allgather_into_tensor_coalesced(small_outs, small_ins, options);
  return all_gather_parts(parts, large, outs, OpType::_ALLGATHER_BASE, std::move(rest));
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::all_to_all_parts(const Tensors& outs,
                                                                   const Tensors& ins,
                                                                   Tensors results, OpType type) {
  // Sizes are no part of the text: they differ from rank to rank.
  const std::string text =
      concat("all_to_all of ", toString(ins[0].scalar_type()), " by ", settings_.all_to_all.text());
  std::uint64_t dense = bytes_of(ins) - ins[static_cast<std::size_t>(getRank())].nbytes();
  return coded(Kind::kAllToAll, type, ins, std::move(results), text, dense, {},
               [this, outs, ins, text] {
                 return engine_->collectives().all_to_all(
                     {&settings_.all_to_all, "", text, engine_->next_step("all_to_all/")}, ins,
                     outs, settings_.min_numel);
               });
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::alltoall_base(
    at::Tensor& out, at::Tensor& in, std::vector<std::int64_t>& out_sizes,
    std::vector<std::int64_t>& in_sizes, const c10d::AllToAllOptions& options) {
  const auto fits = [&](const at::Tensor& tensor, const std::vector<std::int64_t>& sizes) {
    return tensor.dim() > 0 && tensor.is_contiguous() &&
           (sizes.empty()
                ? tensor.size(0) % getSize() == 0
                : std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0}) == tensor.size(0) &&
                      sizes.size() == static_cast<std::size_t>(getSize()));
  };
  // What does not fit gets the wrapped backend's own words.
  if (!fits(out, out_sizes) || !fits(in, in_sizes) || out.scalar_type() != in.scalar_type() ||
      !codes(Kind::kAllToAll, settings_.all_to_all, in)) {
    return exact(Kind::kAllToAll, {}, in,
                 inner_->alltoall_base(out, in, out_sizes, in_sizes, options));
  }
  return all_to_all_parts(rows_of(out, out_sizes, getSize()), rows_of(in, in_sizes, getSize()),
                          {out}, OpType::ALLTOALL_BASE);
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::alltoall(Tensors& outs, Tensors& ins,
                                                           const c10d::AllToAllOptions& options) {
  const auto size = static_cast<std::size_t>(getSize());
  bool all_coded = outs.size() == size && ins.size() == size;
  for (std::size_t r = 0; r < size && all_coded; ++r) {
    all_coded = is_codable(outs[r]) && outs[r].scalar_type() == ins[r].scalar_type() &&
                codes(Kind::kAllToAll, settings_.all_to_all, ins[r]);
  }
  if (all_coded) return all_to_all_parts(outs, ins, outs, OpType::ALLTOALL);
  WorkPtr work = inner_->alltoall(outs, ins, options);
  ++counters(Kind::kAllToAll).exact;
  return work;
}

}  // namespace thinwire
