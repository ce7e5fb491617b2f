#include "thinwire/moe/dispatch/route_chunks.h"

#include <algorithm>

#include <ATen/ops/zeros.h>

namespace thinwire::moe {
namespace {

// Pairs whose rows lie in part `chunk` of `chunks`.
struct Part {
  std::int64_t first_row, rows;
  std::span<const SentRows::Pair> pairs;
  std::size_t first_pair;
};

Part cut_of(const SentRows& all, std::int64_t chunk, std::int64_t chunks) {
  const std::int64_t begin = all.count * chunk / chunks;
  const std::int64_t end = all.count * (chunk + 1) / chunks;
  const auto at_row = [&](std::int64_t row) {
    return std::lower_bound(
        all.pairs.begin(), all.pairs.end(), row,
        [](const SentRows::Pair& pair, std::int64_t r) { return pair.row < r; });
  };
  const auto first = at_row(begin);
  return {begin,
          end - begin,
          {first, at_row(end)},
          static_cast<std::size_t>(first - all.pairs.begin())};
}

// Positions of the pairs of a part, by expert; those of one expert stay in order.
std::vector<std::vector<std::size_t>> by_expert(const Part& part, std::int64_t experts) {
  std::vector<std::vector<std::size_t>> lists(static_cast<std::size_t>(experts));
  for (std::size_t i = 0; i < part.pairs.size(); ++i) {
    lists[static_cast<std::size_t>(part.pairs[i].expert)].push_back(i);
  }
  return lists;
}

bool is_identity(const std::vector<std::int32_t>& index) {
  for (std::size_t i = 0; i < index.size(); ++i) {
    if (index[i] != static_cast<std::int32_t>(i)) return false;
  }
  return true;
}

// Null where it would change nothing.
RowMapPtr gather_unless_identity(std::vector<std::int32_t> index, std::int64_t inputs) {
  if (static_cast<std::int64_t>(index.size()) == inputs && is_identity(index)) return {};
  return gather_map(std::move(index), inputs);
}

// What this rank does with the rows of all ranks in one chunk; the rows of a part count from its
// first.
void fill_receiver(RouteChunk& chunk, const std::vector<Part>& parts, std::int64_t experts) {
  std::vector<std::vector<std::vector<std::size_t>>> lists;
  std::vector<std::int64_t> begin;  // of the rows of each source
  std::int64_t arrivals = 0;
  for (const Part& part : parts) {
    lists.push_back(by_expert(part, experts));
    begin.push_back(arrivals);
    arrivals += part.rows;
    chunk.computed_rows.push_back(static_cast<std::int64_t>(part.pairs.size()));
  }
  std::vector<std::int32_t> arrival;                           // of every row in the experts' order
  std::vector<std::vector<std::int32_t>> place(parts.size());  // and the other way, per source
  for (std::size_t s = 0; s < parts.size(); ++s) place[s].resize(parts[s].pairs.size());
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::size_t before = arrival.size();
    for (std::size_t s = 0; s < parts.size(); ++s) {
      for (const std::size_t i : lists[s][static_cast<std::size_t>(e)]) {
        place[s][i] = static_cast<std::int32_t>(arrival.size());
        arrival.push_back(
            static_cast<std::int32_t>(begin[s] + parts[s].pairs[i].row - parts[s].first_row));
      }
    }
    chunk.expert_rows.push_back(static_cast<std::int64_t>(arrival.size() - before));
  }
  std::vector<std::int32_t> departure;
  for (std::size_t s = 0; s < parts.size(); ++s) {
    for (const auto& of_expert : lists[s]) {
      for (const std::size_t i : of_expert) departure.push_back(place[s][i]);
    }
  }
  const auto rows = static_cast<std::int64_t>(arrival.size());
  chunk.by_expert = gather_unless_identity(std::move(arrival), arrivals);
  chunk.by_source = gather_unless_identity(std::move(departure), rows);
  chunk.has_arrived = true;
}

// [rows, width] uint8.
at::Tensor masks_of(const std::vector<Part>& parts, std::int64_t rows, std::int64_t width) {
  at::Tensor masks = at::zeros({rows, width}, at::kByte);
  auto* out = masks.mutable_data_ptr<std::uint8_t>();
  for (const Part& part : parts) {
    for (const SentRows::Pair& pair : part.pairs) {
      out[(pair.row - part.first_row) * width + pair.expert / 8] |=
          static_cast<std::uint8_t>(1 << pair.expert % 8);
    }
    out += part.rows * width;
  }
  return masks;
}

}  // namespace

std::vector<SentRows> rows_to_send(const ExpertPlacement& placement,
                                   const std::vector<std::int64_t>& expert_rows,
                                   const std::vector<std::int64_t>& keys) {
  struct Entry {
    std::int64_t key;
    std::int32_t expert, source;
  };
  check(static_cast<std::int64_t>(expert_rows.size()) == placement.experts, "row counts of ",
        placement.experts, " experts expected, got ", expert_rows.size());
  std::vector<SentRows> all(static_cast<std::size_t>(placement.ranks));
  std::int32_t source = 0;
  for (int rank = 0; rank < placement.ranks; ++rank) {
    std::vector<Entry> entries;
    for (std::int64_t e = placement.first(rank); e < placement.first(rank + 1); ++e) {
      const auto expert = static_cast<std::int32_t>(e - placement.first(rank));
      for (std::int64_t i = 0; i < expert_rows[static_cast<std::size_t>(e)]; ++i, ++source) {
        entries.push_back({source, expert, source});
        if (keys.empty()) continue;
        check(source < static_cast<std::int64_t>(keys.size()), "keys of at least ", source + 1,
              " rows expected, got ", keys.size());
        const std::int64_t key = entries.back().key = keys[static_cast<std::size_t>(source)];
        check(i == 0 || keys[static_cast<std::size_t>(source - 1)] < key,
              "the keys of an expert's rows must ascend, but row ", source, " has ", key);
      }
    }
    if (!keys.empty()) {
      std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
        return std::pair(a.key, a.expert) < std::pair(b.key, b.expert);
      });
    }
    SentRows& rows = all[static_cast<std::size_t>(rank)];
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (i == 0 || entries[i].key != entries[i - 1].key) ++rows.count;
      rows.pairs.push_back({static_cast<std::int32_t>(rows.count - 1), entries[i].expert});
      rows.source.push_back(entries[i].source);
    }
  }
  return all;
}

std::int64_t mask_bytes(const ExpertPlacement& placement) {
  const bool some_rank_has_several = placement.ranks > 1 && placement.count(0) > 1;
  return some_rank_has_several ? (placement.count(0) + 7) / 8 : 0;
}

void fill_chunks(RowRoutes& routes, const ExpertPlacement& placement, int rank, std::int64_t count,
                 const std::vector<SentRows>& sent,
                 const std::vector<std::int64_t>& received_rows) {
  std::size_t rows = 0;
  for (const SentRows& to : sent) rows += to.source.size();
  std::vector<std::int32_t> order(rows), sent_of(rows);
  std::int32_t results = 0, sent_rows = 0;
  for (std::int64_t c = 0; c < count; ++c) {
    RouteChunk& chunk = routes.chunks.emplace_back();
    std::vector<std::int32_t> by_receiver;
    std::vector<Part> parts;
    for (int peer = 0; peer < placement.ranks; ++peer) {
      const SentRows& all = sent[static_cast<std::size_t>(peer)];
      const Part part = parts.emplace_back(cut_of(all, c, count));
      chunk.sent_rows.push_back(part.rows);
      chunk.returned_rows.push_back(static_cast<std::int64_t>(part.pairs.size()));
      const std::int64_t from_peer = received_rows[static_cast<std::size_t>(peer)];
      chunk.received_rows.push_back(from_peer * (c + 1) / count - from_peer * c / count);
      for (std::size_t i = 0; i < part.pairs.size(); ++i) {
        const std::int32_t source = all.source[part.first_pair + i];
        if (i == 0 || part.pairs[i].row != part.pairs[i - 1].row) {
          by_receiver.push_back(source);
          ++sent_rows;
        }
        sent_of[static_cast<std::size_t>(source)] = sent_rows - 1;
      }
      for (const auto& of_expert : by_expert(part, placement.count(peer))) {
        for (const std::size_t i : of_expert) {
          order[static_cast<std::size_t>(all.source[part.first_pair + i])] = results++;
        }
      }
    }
    const std::int64_t width = mask_bytes(placement);
    if (width > 0) {
      chunk.masks = masks_of(parts, static_cast<std::int64_t>(by_receiver.size()), width);
    }
    chunk.by_receiver =
        gather_unless_identity(std::move(by_receiver), static_cast<std::int64_t>(rows));
    if (placement.ranks == 1) fill_receiver(chunk, parts, placement.count(rank));
  }
  routes.sent_rows = sent_rows;
  routes.order = gather_unless_identity(std::move(order), static_cast<std::int64_t>(rows));
  routes.sent_of = gather_unless_identity(std::move(sent_of), sent_rows);
}

void fill_arrived(RouteChunk& chunk, const ExpertPlacement& placement, int rank,
                  const at::Tensor& masks) {
  const std::int64_t experts = placement.count(rank);
  const auto* mask = masks.defined() ? masks.const_data_ptr<std::uint8_t>() : nullptr;
  const std::int64_t width = masks.defined() ? masks.size(1) : 0;
  std::vector<SentRows> from(chunk.received_rows.size());
  std::vector<Part> parts;
  for (std::size_t source = 0; source < from.size(); ++source) {
    SentRows& rows = from[source];
    rows.count = chunk.received_rows[source];
    for (std::int32_t row = 0; row < rows.count; ++row) {
      // Where no rank has several experts, a row is for the receiver's only one.
      const std::size_t before = rows.pairs.size();
      for (std::int32_t e = 0; e < experts; ++e) {
        if (mask == nullptr || (mask[e / 8] >> e % 8 & 1) != 0) rows.pairs.push_back({row, e});
      }
      if (rows.pairs.size() == before) {
        throw FrameError(concat("row ", row, " of ", rows.count, " from rank ", source,
                                " is for no expert of rank ", rank));
      }
      if (mask != nullptr) mask += width;
    }
    parts.push_back({0, rows.count, rows.pairs, 0});
  }
  fill_receiver(chunk, parts, experts);
}

}  // namespace thinwire::moe
