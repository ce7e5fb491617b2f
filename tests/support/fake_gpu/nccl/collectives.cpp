// NCCL's operations between processes of one host, made of sends and receives.
#include <cstring>
#include <memory>
#include <utility>

#include "thinwire/tests/support/fake_gpu/memory.h"
#include "thinwire/tests/support/fake_gpu/nccl/group.h"
#include "thinwire/tests/support/fake_gpu/nccl/reduce.h"

namespace {

using namespace thinwire::fake_gpu;

std::byte* bytes_of(const void* pointer) {
  return static_cast<std::byte*>(shadow(pointer));
}

Operation operation(const char* name, ncclComm* comm, cudaStream_t stream) {
  return {name, comm, stream_of(stream)};
}

template <typename Use>
void for_each_peer(const ncclComm* comm, const Use& use) {
  for (int peer = 0; peer < comm->size; ++peer)
    if (peer != comm->rank) use(peer);
}

// Every rank's `bytes` bytes at in_at(peer) go to it, out_at(peer) is filled by it; its own part is
// copied.
template <typename InAt, typename OutAt>
ncclResult_t exchange(Operation one, std::size_t bytes, const InAt& in_at, const OutAt& out_at) {
  for_each_peer(one.comm, [&](int peer) {
    one.sends.push_back({peer, in_at(peer), bytes});
    one.receives.push_back({peer, out_at(peer), bytes});
  });
  one.begin = [to = out_at(one.comm->rank), from = in_at(one.comm->rank), bytes] {
    std::memmove(to, from, bytes);
  };
  return add_operation(std::move(one));
}

// Who gets the result of a reduction, and of which part of the input.
enum class Result { kAllOfAll, kOwnPart, kAllAtRoot };

ncclResult_t reduce_to(const char* name, const void* in, void* out, std::size_t count,
                       ncclDataType_t type, ncclRedOp_t reduction, Result result, int root,
                       ncclComm* comm, cudaStream_t stream) {
  if (!can_reduce(type, reduction)) return ncclInvalidArgument;
  const std::size_t bytes = count * size_of(type);
  const bool scatters = result == Result::kOwnPart;
  const auto ranks = static_cast<std::size_t>(comm->size),
             own = static_cast<std::size_t>(comm->rank);
  const std::size_t in_bytes = scatters ? bytes * ranks : bytes;
  const auto part_of = [scatters, bytes](std::size_t peer) { return scatters ? peer * bytes : 0; };
  const bool wanted_here = result != Result::kAllAtRoot || root == comm->rank;

  // In place is allowed, so nothing is received where something is still to be sent.
  struct Buffers {
    std::vector<std::byte> mine;
    std::vector<std::vector<std::byte>> parts;
  };
  auto buffers = std::make_shared<Buffers>();
  buffers->mine.resize(in_bytes);
  buffers->parts.assign(ranks, std::vector<std::byte>(bytes));

  Operation one = operation(name, comm, stream);
  one.accesses.push_back({in, in_bytes, false});
  if (wanted_here) one.accesses.push_back({out, bytes, true});
  one.begin = [buffers, from = bytes_of(in), own, part_of] {
    std::memcpy(buffers->mine.data(), from, buffers->mine.size());
    std::memcpy(buffers->parts[own].data(), buffers->mine.data() + part_of(own),
                buffers->parts[own].size());
  };
  for_each_peer(comm, [&](int peer) {
    const auto index = static_cast<std::size_t>(peer);
    if (result != Result::kAllAtRoot || peer == root)
      one.sends.push_back({peer, buffers->mine.data() + part_of(index), bytes});
    if (wanted_here) one.receives.push_back({peer, buffers->parts[index].data(), bytes});
  });
  if (wanted_here) {
    one.end = [buffers, to = bytes_of(out), type, reduction] {
      reduce(buffers->parts, type, reduction, to);
    };
  }
  return add_operation(std::move(one));
}

}  // namespace

extern "C" {

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  const std::size_t bytes = count * size_of(type);
  Operation one = operation("ncclSend", comm, stream);
  one.accesses = {{data, bytes, false}};
  one.sends = {{peer, bytes_of(data), bytes}};
  return add_operation(std::move(one));
}

ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  const std::size_t bytes = count * size_of(type);
  Operation one = operation("ncclRecv", comm, stream);
  one.accesses = {{data, bytes, true}};
  one.receives = {{peer, bytes_of(data), bytes}};
  return add_operation(std::move(one));
}

ncclResult_t ncclAllGather(const void* in, void* out, std::size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  const std::size_t bytes = count * size_of(type);
  const auto ranks = static_cast<std::size_t>(comm->size);
  Operation one = operation("ncclAllGather", comm, stream);
  one.accesses = {{in, bytes, false}, {out, bytes * ranks, true}};
  return exchange(
      std::move(one), bytes, [&](int) { return bytes_of(in); },
      [&](int peer) { return bytes_of(out) + static_cast<std::size_t>(peer) * bytes; });
}

ncclResult_t ncclAlltoAll(const void* in, void* out, std::size_t count, ncclDataType_t type,
                          ncclComm_t comm, cudaStream_t stream) {
  const std::size_t bytes = count * size_of(type);
  const auto ranks = static_cast<std::size_t>(comm->size);
  Operation one = operation("ncclAlltoAll", comm, stream);
  one.accesses = {{in, bytes * ranks, false}, {out, bytes * ranks, true}};
  return exchange(
      std::move(one), bytes,
      [&](int peer) { return bytes_of(in) + static_cast<std::size_t>(peer) * bytes; },
      [&](int peer) { return bytes_of(out) + static_cast<std::size_t>(peer) * bytes; });
}

ncclResult_t ncclBroadcast(const void* in, void* out, std::size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  const std::size_t bytes = count * size_of(type);
  Operation one = operation("ncclBroadcast", comm, stream);
  one.accesses = {{out, bytes, true}};
  if (comm->rank == root) {
    one.accesses.insert(one.accesses.begin(), {in, bytes, false});
    one.begin = [=] { std::memmove(bytes_of(out), bytes_of(in), bytes); };
    for_each_peer(comm, [&](int peer) { one.sends.push_back({peer, bytes_of(in), bytes}); });
  } else {
    one.receives = {{root, bytes_of(out), bytes}};
  }
  return add_operation(std::move(one));
}

ncclResult_t ncclBcast(void* data, std::size_t count, ncclDataType_t type, int root,
                       ncclComm_t comm, cudaStream_t stream) {
  return ncclBroadcast(data, data, count, type, root, comm, stream);
}

ncclResult_t ncclAllReduce(const void* in, void* out, std::size_t count, ncclDataType_t type,
                           ncclRedOp_t reduction, ncclComm_t comm, cudaStream_t stream) {
  return reduce_to("ncclAllReduce", in, out, count, type, reduction, Result::kAllOfAll, 0, comm,
                   stream);
}

ncclResult_t ncclReduce(const void* in, void* out, std::size_t count, ncclDataType_t type,
                        ncclRedOp_t reduction, int root, ncclComm_t comm, cudaStream_t stream) {
  return reduce_to("ncclReduce", in, out, count, type, reduction, Result::kAllAtRoot, root, comm,
                   stream);
}

ncclResult_t ncclReduceScatter(const void* in, void* out, std::size_t count, ncclDataType_t type,
                               ncclRedOp_t reduction, ncclComm_t comm, cudaStream_t stream) {
  return reduce_to("ncclReduceScatter", in, out, count, type, reduction, Result::kOwnPart, 0, comm,
                   stream);
}
}
