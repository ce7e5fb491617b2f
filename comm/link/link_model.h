// What the network costs: latency and bandwidth of every collective and every pair of ranks,
// measured by `thinwire link` and read by the selector of reductions and by L-GreCo.
//
// A time is alpha + beta · bytes (Hockney 1994): alpha in seconds, beta in seconds per byte. Bytes
// are always those that **one rank hands to the network** in the call, see sent_bytes(); so the
// same number says how long a compressed payload of that size takes.
//
// docs/benchmarks.md describes the JSON file.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace thinwire::comm {

struct AlphaBeta {
  double alpha = 0;  // seconds
  double beta = 0;   // seconds per byte

  double predict(double bytes) const { return alpha + beta * bytes; }
  bool operator==(const AlphaBeta&) const = default;
};

enum class Collective { kAllReduce, kAllToAll, kAllGather, kBroadcast };
inline constexpr std::array kCollectives = {Collective::kAllReduce, Collective::kAllToAll,
                                            Collective::kAllGather, Collective::kBroadcast};
// "all_reduce", "all_to_all", "all_gather", "broadcast"
std::string_view name_of(Collective collective);

// Bytes that one rank sends when it brings `tensor_bytes` (its whole input) to a collective of
// `world` ranks: all_reduce 2 (W − 1) / W of them (a ring), all_to_all (W − 1) / W (nothing to
// itself), all_gather W − 1 times as many, broadcast all of them (the root's, once).
double sent_bytes(Collective collective, double tensor_bytes, int world);

// One backend between the ranks of a job.
struct BackendLink {
  std::array<AlphaBeta, kCollectives.size()> collectives{};
  // [from][to], one message at a time between an otherwise idle pair; the diagonal is zero. Empty
  // where it was not measured.
  std::vector<std::vector<AlphaBeta>> pairs;

  const AlphaBeta& of(Collective collective) const {
    return collectives[static_cast<std::size_t>(collective)];
  }
  // Seconds of a call in which each rank sends `bytes`.
  double predict(Collective collective, double bytes) const {
    return of(collective).predict(bytes);
  }

  bool operator==(const BackendLink&) const = default;
};

// Seconds per byte of float32 that a codec reads or writes, on one rank while the others of its
// host do the same. Where a codec encodes S bytes the payload's size does not matter.
struct CodecCost {
  double compress = 0;    // with error feedback, where the codec needs it
  double decompress = 0;  // assign
  double accumulate = 0;  // add to what is there
  bool operator==(const CodecCost&) const = default;
};

// What was measured in one job. Value type.
struct LinkModel {
  int world = 0;
  std::vector<std::string> hosts;               // of every rank, in rank order
  std::map<std::string, BackendLink> backends;  // by name: "gloo", "mpi", "nccl"
  std::map<std::string, CodecCost> codecs;      // by canonical spec; may be empty

  // Throws InvalidArgument that lists the measured ones.
  const BackendLink& backend(const std::string& name) const;
  // Null where the codec was not measured.
  const CodecCost* codec(const std::string& spec) const;
  // Different hosts.
  int host_count() const;

  bool operator==(const LinkModel&) const = default;
};

// One timed call.
struct TimedCall {
  double bytes = 0;    // sent by one rank, see sent_bytes()
  double seconds = 0;  // above 0
};

// Least squares of the relative error of alpha + beta · bytes, over the median time of each size,
// so that neither a few calls that were disturbed nor the long calls alone decide. Neither number
// is negative: where the best line has such an alpha or beta, it is 0 and the other one fits alone.
// One size alone cannot tell them apart: then all of its time is beta's, or alpha's if it is of 0
// bytes. Throws InvalidArgument for no calls, for negative bytes
// and for times that are not above 0.
AlphaBeta fit_alpha_beta(std::span<const TimedCall> calls);

// Numbers are written so that reading gives the same bits.
std::string to_json(const LinkModel& model);

// Throws FileError "<source>: <place>: <what is wrong>" for anything that to_json() does not write:
// a missing or unknown field, a negative or non-finite number, a matrix of another size than world.
LinkModel parse_link_model(std::string_view text, const std::string& source);
LinkModel read_link_model(const std::string& path);
void write_link_model(const LinkModel& model, const std::string& path);

}  // namespace thinwire::comm
