#include "thinwire/comm/backend/mpi/schedule.h"

#include <algorithm>

namespace thinwire::comm::mpi {
namespace {

constexpr auto kSend = Message::Direction::kSend;
constexpr auto kReceive = Message::Direction::kReceive;

char* at_element(void* data, std::int64_t index, std::size_t element_size) {
  return static_cast<char*>(data) + static_cast<std::size_t>(index) * element_size;
}

Block block_of(void* data, Portion slice, std::size_t element_size) {
  return {at_element(data, slice.begin, element_size),
          static_cast<std::size_t>(slice.count) * element_size};
}

// Every rank's slice of `data` to all others.
Stage gather_slices(int rank, int size, void* data, std::int64_t numel, std::size_t element_size) {
  const Block mine = block_of(data, portion_of(numel, rank, size), element_size);
  std::vector<Block> out(static_cast<std::size_t>(size), mine), in;
  for (int peer = 0; peer < size; ++peer)
    in.push_back(block_of(data, portion_of(numel, peer, size), element_size));
  return all_to_all(rank, out, in);
}

// Every rank's slice of `data`, which is at `mine` on its rank, to the root's `data`.
Stage collect_slices(int rank, int size, int root, void* data, std::int64_t numel,
                     std::size_t element_size, void* mine) {
  Stage stage;
  for (int peer = 0; peer < size; ++peer) {
    if (peer == root || (rank != root && peer != rank)) continue;
    const Block block = block_of(data, portion_of(numel, peer, size), element_size);
    if (rank == root)
      stage.messages.push_back({kReceive, peer, block.data, block.bytes});
    else
      stage.messages.push_back({kSend, root, mine, block.bytes});
  }
  return stage;
}

// Elements of which every rank reduces kPart bytes.
std::int64_t piece_of(int size, std::size_t element_size) {
  return size * static_cast<std::int64_t>(kPart / element_size);
}

// Contributions of all ranks side by side in `scratch`, this rank's own at `own`.
std::vector<const void*> side_by_side(int rank, int size, void* scratch, std::size_t bytes,
                                      const void* own) {
  std::vector<const void*> contributions;
  for (int peer = 0; peer < size; ++peer)
    contributions.push_back(
        peer == rank ? own : static_cast<char*>(scratch) + static_cast<std::size_t>(peer) * bytes);
  return contributions;
}

}  // namespace

Stage all_to_all(int rank, const std::vector<Block>& out, const std::vector<Block>& in) {
  const auto size = static_cast<int>(out.size());
  Stage stage;
  // Receives first: a message that finds its receive posted is written straight to its place.
  for (const auto direction : {kReceive, kSend}) {
    for (int step = 1; step < size; ++step) {
      const int peer = direction == kSend ? (rank + step) % size : (rank + size - step) % size;
      const Block& block = (direction == kSend ? out : in)[static_cast<std::size_t>(peer)];
      stage.messages.push_back({direction, peer, block.data, block.bytes});
    }
  }
  return stage;
}

std::vector<Stage> broadcast(int rank, int size, int root, Block block, std::size_t long_message) {
  // Ranks counted from the root: rank v hears from v without its lowest set bit, and then tells
  // v + b for every power of two b below that bit.
  const int place = (rank + size - root) % size;
  const auto rank_at = [&](int v) { return (v + root) % size; };
  if (size == 1) return {};
  if (size > 2 && block.bytes > long_message) {
    const auto bytes = static_cast<std::int64_t>(block.bytes);
    Stage scatter;
    const auto slice = [&](int peer) {
      return block_of(block.data, portion_of(bytes, peer, size), 1);
    };
    if (place == 0) {
      for (int v = 1; v < size; ++v)
        scatter.messages.push_back(
            {kSend, rank_at(v), slice(rank_at(v)).data, slice(rank_at(v)).bytes});
    } else {
      scatter.messages.push_back({kReceive, root, slice(rank).data, slice(rank).bytes});
    }
    Stage gather = gather_slices(rank, size, block.data, bytes, 1);
    // The root has everything already, so nobody sends to it.
    std::erase_if(gather.messages, [&](const Message& message) {
      return message.direction == kSend ? message.peer == root : rank == root;
    });
    return {scatter, gather};
  }
  std::vector<Stage> stages(2);
  int bit = 1;
  while (bit < size && (place & bit) == 0) bit *= 2;
  if (place != 0)
    stages[0].messages.push_back({kReceive, rank_at(place - bit), block.data, block.bytes});
  for (bit /= 2; bit > 0; bit /= 2)
    if (place + bit < size)
      stages[1].messages.push_back({kSend, rank_at(place + bit), block.data, block.bytes});
  return stages;
}

std::vector<Stage> barrier(int rank, int size) {
  std::vector<Stage> stages;
  for (int distance = 1; distance < size; distance *= 2)
    stages.push_back({{{kReceive, (rank + size - distance) % size, nullptr, 0},
                       {kSend, (rank + distance) % size, nullptr, 0}},
                      nullptr});
  return stages;
}

std::vector<Stage> monitored_barrier(int rank, int size) {
  std::vector<Stage> stages(2);
  for (int peer = 0; peer < size; ++peer) {
    if ((peer == 0) == (rank == 0)) continue;
    stages[0].messages.push_back({rank == 0 ? kReceive : kSend, peer, nullptr, 0});
    stages[1].messages.push_back({rank == 0 ? kSend : kReceive, peer, nullptr, 0});
  }
  return stages;
}

std::size_t allreduce_scratch(int rank, int size, std::int64_t numel, std::size_t element_size,
                              std::size_t long_message) {
  const std::size_t bytes = static_cast<std::size_t>(numel) * element_size;
  const auto copies = static_cast<std::size_t>(size);
  if (size == 1) return 0;
  if (bytes * copies <= long_message) return copies * bytes;
  const std::int64_t piece = std::min(numel, piece_of(size, element_size));
  return copies * static_cast<std::size_t>(portion_of(piece, rank, size).count) * element_size;
}

std::vector<Stage> allreduce(int rank, int size, int root, void* data, std::int64_t numel,
                             std::size_t element_size, std::size_t long_message, void* scratch,
                             Reduce reduce) {
  const std::size_t bytes = static_cast<std::size_t>(numel) * element_size;
  const bool gets_result = root < 0 || root == rank;
  if (size == 1) return {{{}, [=] { reduce({data}, numel, data); }}};

  if (bytes * static_cast<std::size_t>(size) <= long_message) {
    std::vector<Block> out(static_cast<std::size_t>(size), Block{data, bytes}), in;
    for (int peer = 0; peer < size; ++peer)
      in.push_back({static_cast<char*>(scratch) + static_cast<std::size_t>(peer) * bytes, bytes});
    Stage stage = all_to_all(rank, out, in);
    std::erase_if(stage.messages, [&](const Message& message) {
      return message.direction == kSend ? root >= 0 && message.peer != root : !gets_result;
    });
    if (gets_result)
      stage.then = [=] { reduce(side_by_side(rank, size, scratch, bytes, data), numel, data); };
    return {stage};
  }

  // Piece by piece, so that the contributions are still in the cache when they are reduced. The
  // slices of one piece are collected while the contributions to the next are under way.
  std::vector<Stage> stages(1);
  const std::int64_t piece = piece_of(size, element_size);
  // Places in `scratch`, the same for all pieces: a reduced slice is still sent from its place
  // while the contributions to the next piece arrive.
  const std::size_t stride =
      static_cast<std::size_t>(portion_of(std::min(numel, piece), rank, size).count) * element_size;
  for (std::int64_t begin = 0; begin < numel; begin += piece) {
    const std::int64_t count = std::min(piece, numel - begin);
    void* start = at_element(data, begin, element_size);
    const Portion mine = portion_of(count, rank, size);
    const Block own = block_of(start, mine, element_size);
    std::vector<Block> out, in;
    for (int peer = 0; peer < size; ++peer) {
      out.push_back(block_of(start, portion_of(count, peer, size), element_size));
      in.push_back(
          {static_cast<char*>(scratch) + static_cast<std::size_t>(peer) * stride, own.bytes});
    }
    // Ranks without the result keep their tensor, so they reduce into their own place of `scratch`.
    void* result = gets_result ? own.data : in[static_cast<std::size_t>(rank)].data;
    Stage& scatter = stages.back();
    for (const Message& message : all_to_all(rank, out, in).messages)
      scatter.messages.push_back(message);
    scatter.then = [=] {
      reduce(side_by_side(rank, size, scratch, stride, own.data), mine.count, result);
    };
    stages.push_back(root < 0
                         ? gather_slices(rank, size, start, count, element_size)
                         : collect_slices(rank, size, root, start, count, element_size, result));
  }
  return stages;
}

std::vector<Stage> reduce_scatter(int rank, const std::vector<Block>& in, void* out,
                                  std::int64_t numel, std::size_t element_size, void* scratch,
                                  Reduce reduce) {
  const auto size = static_cast<int>(in.size());
  const std::size_t bytes = static_cast<std::size_t>(numel) * element_size;
  std::vector<Block> arriving;
  for (int peer = 0; peer < size; ++peer)
    arriving.push_back(
        {static_cast<char*>(scratch) + static_cast<std::size_t>(peer) * bytes, bytes});
  Stage stage = all_to_all(rank, in, arriving);
  const void* own = in[static_cast<std::size_t>(rank)].data;
  stage.then = [=] { reduce(side_by_side(rank, size, scratch, bytes, own), numel, out); };
  return {stage};
}

}  // namespace thinwire::comm::mpi
