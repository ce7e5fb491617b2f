#include "thinwire/torch_ext/backend/coded_collectives.h"

#include <ATen/ops/from_blob.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/wire/largest.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::detail {
namespace {

std::uint64_t hash_of_text(std::string_view text) {
  return XXH3_64bits(text.data(), text.size());
}

at::Tensor as_flat_floats(const at::Tensor& tensor) {
  return tensor.detach().to(at::kFloat).contiguous().view({-1});
}

std::span<float> floats_in(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
}

at::Tensor tensor_over(std::span<float> values) {
  return at::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, at::kFloat);
}

void copy_values(const at::Tensor& into, std::span<float> values) {
  into.detach().copy_(tensor_over(values).view(into.sizes()));
}

// The numbers of what `sender` encodes for `receiver`.
RandomKey key_of(const comm::ReductionContext& context, const CodedCall& call, int sender,
                 int receiver) {
  return {.seed = context.seed,
          .step = call.step,
          .layer = static_cast<std::uint32_t>(hash_of_text(call.key)),
          .rank = static_cast<std::uint32_t>(sender),
          .stage = static_cast<std::uint32_t>(receiver)};
}

// No frame for this rank itself, whatever the buffer held in an earlier call.
void leave_empty(comm::FrameBuffer& frame, comm::Arena& arena, const FrameHeader& header) {
  frame.payload(arena, 0);
  frame.finish(header, 0);
}

std::size_t most_bytes(const Codec& codec, std::size_t numel) {
  return codec.max_compressed_bytes(static_cast<std::int64_t>(numel), DType::kFloat32);
}

// A frame with the encoded values.
void encode_into(comm::FrameBuffer& frame, comm::Arena& arena, const FrameHeader& header,
                 const Codec& codec, std::span<const float> values, const RandomKey& key) {
  const auto room = frame.payload(arena, most_bytes(codec, values.size()));
  frame.finish(header, codec.compress(view_of(values), key, room));
}

}  // namespace

CodedCollectives::CodedCollectives(c10::intrusive_ptr<c10d::ProcessGroup> group, std::uint64_t seed)
    : group_(std::move(group)),
      peers_(*group_),
      seed_(seed),
      frames_(static_cast<std::size_t>(group_->getSize())) {}

// The ranks must have come for the same call, with the same settings.
comm::ReductionContext CodedCollectives::begin(const CodedCall& call, comm::Refusal& refusal) {
  const std::uint64_t hash = hash_of_text(call.text);
  ++sequence_;
  if (!comm::HashAgreement(*group_, sequence_, hash).wait()) {
    comm::agree_on_text(*group_, concat("coded call/", sequence_), "the call", call.text);
    throw InternalError(concat("the ranks made different calls of equal description, #", sequence_,
                               ": they are out of step"));
  }
  workspace_.arena.reset();
  return {.peers = &peers_,
          .refusal = &refusal,
          .workspace = &workspace_,
          .divisor = group_->getSize(),
          .sequence = sequence_,
          .step = call.step,
          .seed = seed_,
          .layout = hash};
}

// Whether every rank accepted every frame. Returns the bytes of what the ranks told each other
// about the call, here and in begin().
std::size_t CodedCollectives::agree(const CodedCall& call, const comm::Refusal& refusal) {
  return comm::HashAgreement::sent_bytes(peers_.size()) +
         refusal.agree(*group_, sequence_, call.text);
}

// What is kept under the call's key, zero at first.
std::vector<float>& CodedCollectives::kept(std::map<std::string, std::vector<float>>& memory,
                                           const CodedCall& call, std::size_t numel) {
  const auto [entry, added] = memory.try_emplace(call.key, numel, 0.0f);
  check(entry->second.size() == numel, "the feedback key '", call.key, "' was given to ",
        entry->second.size(), " elements before, now to ", numel,
        "; a key belongs to one tensor of the program");
  return entry->second;
}

std::size_t CodedCollectives::reduce_scatter(const CodedCall& call,
                                             const std::vector<at::Tensor>& parts, at::Tensor& out,
                                             bool mean) {
  const Codec& codec = *call.setting->codec;
  const auto size = static_cast<std::size_t>(peers_.size());
  const auto self = static_cast<std::size_t>(peers_.rank());
  const auto numel = static_cast<std::size_t>(out.numel());
  comm::Refusal refusal;
  comm::ReductionContext context = begin(call, refusal);

  std::vector<float> corrected;
  std::int64_t finite = 1;
  Headers expected;
  for (std::size_t p = 0; p < size; ++p) {
    expected.push_back(comm::header_of(context, numel, static_cast<int>(p), 0));
  }
  const auto encode = [&] {
    std::vector<float>* owed = nullptr;
    if (!call.key.empty()) {
      owed = &kept(memory_.residuals, call, numel * (size - 1));
      corrected.resize(numel * (size - 1));
    }
    const auto decay = static_cast<float>(call.setting->feedback.decay);
    for (std::size_t p = 0, other = 0; p < size; ++p) {
      const at::Tensor values = as_flat_floats(parts[p]);
      if (p == self) {
        if (!kernels::all_finite(floats_in(values))) finite = 0;
        leave_empty(frames_[p], workspace_.arena, expected[self]);
        continue;
      }
      const auto random = key_of(context, call, peers_.rank(), static_cast<int>(p));
      if (!owed) {
        encode_into(frames_[p], workspace_.arena, expected[self], codec, floats_in(values), random);
        continue;
      }
      const auto rest = std::span(corrected).subspan(other * numel, numel);
      const float* debt = owed->data() + other * numel;
      if (!kernels::add_scaled(floats_in(values).data(), debt, decay, rest)) finite = 0;
      const auto room = frames_[p].payload(workspace_.arena, most_bytes(codec, numel));
      const std::size_t bytes = codec.compress_and_subtract(view_of(rest), random, room);
      frames_[p].finish(expected[self], bytes);
      ++other;
    }
  };
  const auto operation = [] { return "reduce_scatter"; };
  comm::guard(*group_, operation, sequence_, encode);
  const comm::ReceivedFrames received = comm::swap_frames(
      context, frames_, expected, kFrameHeaderBytes + most_bytes(codec, numel), "reduce_scatter");

  comm::guard(*group_, operation, sequence_, [&] {
    if (!received.complete) return;
    std::vector<float> sum(numel, 0.0f);
    for (std::size_t p = 0; p < size; ++p) {
      if (p == self) {
        kernels::add_scaled(sum.data(), floats_in(as_flat_floats(parts[p])).data(), 1.0f, sum);
        continue;
      }
      codec.decompress(received.payloads[p],
                       key_of(context, call, static_cast<int>(p), peers_.rank()),
                       view_of(std::span(sum)), WriteMode::kAccumulate);
    }
    if (mean) kernels::divide(sum, static_cast<float>(size));
    copy_values(out, sum);
  });
  std::size_t sent = received.sent + agree(call, refusal);
  if (call.key.empty()) return sent;
  // A step that overflowed anywhere is dropped by all: nobody's residual may have paid for it.
  std::array<std::int64_t, 1> overflowed = {finite == 0 ? 1 : 0};
  sent += comm::take_largest(*group_, overflowed, "agreement on the result", sequence_);
  if (overflowed[0] == 0) memory_.residuals[call.key] = std::move(corrected);
  return sent;
}

std::size_t CodedCollectives::all_gather(const CodedCall& call, const at::Tensor& in,
                                         const std::vector<at::Tensor>& outs) {
  const Codec& codec = *call.setting->codec;
  const auto size = static_cast<std::size_t>(peers_.size());
  const auto self = static_cast<std::size_t>(peers_.rank());
  const auto numel = static_cast<std::size_t>(in.numel());
  comm::Refusal refusal;
  comm::ReductionContext context = begin(call, refusal);

  // The first call under a key is exact: there is nothing to differ from, and a codec of
  // differences would start far off.
  const bool first = !call.key.empty() && !memory_.received.contains(call.key);
  const std::size_t most = std::max(most_bytes(codec, numel), numel * sizeof(float));
  Headers expected;
  for (std::size_t p = 0; p < size; ++p) {
    expected.push_back(comm::header_of(context, numel, static_cast<int>(p), first ? 1 : 0));
  }
  std::vector<float>* before = nullptr;
  const auto operation = [] { return "all_gather"; };
  comm::guard(*group_, operation, sequence_, [&] {
    at::Tensor values = as_flat_floats(in);
    if (first) {
      const auto bytes = std::as_bytes(floats_in(values));
      std::ranges::copy(bytes, frames_[0].payload(workspace_.arena, bytes.size()).begin());
      frames_[0].finish(expected[self], bytes.size());
      return;
    }
    if (!call.key.empty()) {
      before = &kept(memory_.received, call, numel * size);
      values = values.clone();
      kernels::subtract(floats_in(values), before->data() + self * numel);
    }
    encode_into(frames_[0], workspace_.arena, expected[self], codec, floats_in(values),
                key_of(context, call, peers_.rank(), 0));
  });
  const comm::ReceivedFrames received = comm::swap_frames(
      context, std::span(frames_).first(1), expected, kFrameHeaderBytes + most, "all_gather");

  std::vector<float> now;
  comm::guard(*group_, operation, sequence_, [&] {
    if (before) {
      now = *before;
    } else {
      now.assign(numel * size, 0.0f);
    }
    for (std::size_t p = 0; p < size && received.complete; ++p) {
      const auto payload = p == self ? frames_[0].payload() : received.payloads[p];
      const auto values = std::span(now).subspan(p * numel, numel);
      if (first) {
        if (payload.size() != values.size_bytes())
          throw FrameError(
              concat("an exact part of ", numel, " elements came in ", payload.size(), " bytes"));
        std::memcpy(values.data(), payload.data(), payload.size());
      } else {
        codec.decompress(payload, key_of(context, call, static_cast<int>(p), 0), view_of(values),
                         before ? WriteMode::kAccumulate : WriteMode::kAssign);
      }
      copy_values(outs[p], values);
    }
  });
  const std::size_t sent = received.sent + agree(call, refusal);
  // All ranks decoded the same bytes, so all keep or drop them together.
  if (!call.key.empty() && kernels::all_finite(now)) memory_.received[call.key] = std::move(now);
  return sent;
}

std::size_t CodedCollectives::all_to_all(const CodedCall& call, const std::vector<at::Tensor>& ins,
                                         const std::vector<at::Tensor>& outs,
                                         std::int64_t min_numel) {
  const Codec& codec = *call.setting->codec;
  const auto size = static_cast<std::size_t>(peers_.size());
  const auto self = static_cast<std::size_t>(peers_.rank());
  comm::Refusal refusal;
  comm::ReductionContext context = begin(call, refusal);

  // What one frame may hold is what the sender says the part has; it is checked against the room
  // that this rank has for it.
  Headers expected, own;
  std::size_t most = 0;
  const auto bytes_of_part = [&](const at::Tensor& part) {
    return std::max(most_bytes(codec, static_cast<std::size_t>(part.numel())), part.nbytes());
  };
  for (std::size_t p = 0; p < size; ++p) {
    const auto header = [&](const at::Tensor& part, int sender) {
      return comm::header_of(context, static_cast<std::uint64_t>(part.numel()), sender, 0);
    };
    expected.push_back(header(outs[p], static_cast<int>(p)));
    own.push_back(header(ins[p], peers_.rank()));
    most = std::max({most, bytes_of_part(ins[p]), bytes_of_part(outs[p])});
  }
  const auto operation = [] { return "all_to_all"; };
  comm::guard(*group_, operation, sequence_, [&] {
    for (std::size_t p = 0; p < size; ++p) {
      if (p == self) {
        leave_empty(frames_[p], workspace_.arena, own[p]);
        continue;
      }
      if (ins[p].numel() >= min_numel) {
        encode_into(frames_[p], workspace_.arena, own[p], codec, floats_in(as_flat_floats(ins[p])),
                    key_of(context, call, peers_.rank(), static_cast<int>(p)));
        continue;
      }
      const at::Tensor part = ins[p].detach().contiguous();
      const auto room = frames_[p].payload(workspace_.arena, part.nbytes());
      if (!room.empty()) std::memcpy(room.data(), part.const_data_ptr(), room.size());
      frames_[p].finish(own[p], room.size());
    }
  });
  // The sizes of the parts differ from rank to rank, so the ranks agree on the largest.
  const auto limits =
      peers_.all_gather(std::array{static_cast<std::int64_t>(most)}, "all_to_all", sequence_);
  most = static_cast<std::size_t>(std::ranges::max(limits));
  const comm::ReceivedFrames received =
      comm::swap_frames(context, frames_, expected, kFrameHeaderBytes + most, "all_to_all");

  comm::guard(*group_, operation, sequence_, [&] {
    outs[self].detach().copy_(ins[self].detach().view(outs[self].sizes()));
    for (std::size_t p = 0; p < size && received.complete; ++p) {
      if (p == self) continue;
      const auto numel = static_cast<std::size_t>(outs[p].numel());
      const auto& payload = received.payloads[p];
      if (outs[p].numel() >= min_numel) {
        std::vector<float> values(numel);
        codec.decompress(payload, key_of(context, call, static_cast<int>(p), peers_.rank()),
                         view_of(std::span(values)), WriteMode::kAssign);
        copy_values(outs[p], values);
        continue;
      }
      const at::Tensor part = at::empty(outs[p].sizes(), outs[p].options());
      if (payload.size() != part.nbytes())
        throw FrameError(
            concat("an exact part of ", numel, " elements came in ", payload.size(), " bytes"));
      if (!payload.empty()) std::memcpy(part.mutable_data_ptr(), payload.data(), payload.size());
      outs[p].detach().copy_(part);
    }
  });
  return received.sent + sizeof(std::int64_t) * (size - 1) + agree(call, refusal);
}

std::map<std::string, at::Tensor> CodedCollectives::state() const {
  std::map<std::string, at::Tensor> saved;
  const auto put = [&](const char* kind, const auto& memory) {
    for (const auto& [key, values] : memory) {
      std::vector<float> copy = values;
      saved[concat(kind, key)] = tensor_over(copy).clone();
    }
  };
  put("residual/", memory_.residuals);
  put("received/", memory_.received);
  return saved;
}

CodedCollectives::Memory CodedCollectives::memory_of(
    const std::map<std::string, at::Tensor>& state) {
  Memory memory;
  for (const auto& [name, tensor] : state) {
    const bool is_residual = name.starts_with("residual/");
    check(is_residual || name.starts_with("received/"), "a state of a process group has tensors ",
          "residual/KEY and received/KEY, got '", name, "'");
    check(tensor.scalar_type() == at::kFloat, "'", name, "' must be float32, got ",
          toString(tensor.scalar_type()));
    const at::Tensor values = as_flat_floats(tensor);
    const auto span = floats_in(values);
    (is_residual ? memory.residuals : memory.received)[name.substr(name.find('/') + 1)].assign(
        span.begin(), span.end());
  }
  return memory;
}

}  // namespace thinwire::detail
