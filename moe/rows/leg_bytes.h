// The legs of an expert exchange, the bytes that went over them, and where the time went.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace thinwire::moe {

// The four times that rows cross the network in one training step.
enum class Leg { kDispatch = 0, kCombine = 1, kCombineBackward = 2, kDispatchBackward = 3 };
inline constexpr int kLegs = 4;
// "dispatch", "combine", "combine_backward", "dispatch_backward".
const char* name_of(Leg leg);

// Bytes that this rank handed to the network, payload only. Rows that stay on this rank cost
// nothing.
struct LegBytes {
  std::array<std::int64_t, kLegs> rows{};
  // Of the routes: records, reasons of failures, and the masks that come with dispatched rows.
  std::int64_t counts = 0;
  std::int64_t bases = 0;  // of agreeing on the bases of spectral rows
  // Of what replicas add up between passes, each all_reduce as a ring sends it: the gradients of
  // experts, and the experts' load for the router's bias.
  std::int64_t replicas = 0;

  std::int64_t total() const {
    return rows[0] + rows[1] + rows[2] + rows[3] + counts + bases + replicas;
  }
  LegBytes& operator+=(const LegBytes& other) {
    for (std::size_t leg = 0; leg < rows.size(); ++leg) rows[leg] += other.rows[leg];
    counts += other.counts;
    bases += other.bases;
    replicas += other.replicas;
    return *this;
  }
  LegBytes operator-(const LegBytes& earlier) const {
    LegBytes difference = *this;
    for (std::size_t leg = 0; leg < rows.size(); ++leg) difference.rows[leg] -= earlier.rows[leg];
    difference.counts -= earlier.counts;
    difference.bases -= earlier.bases;
    difference.replicas -= earlier.replicas;
    return difference;
  }
};

// Seconds of this rank, forward and backward passes together except where noted.
struct MoESeconds {
  double gate = 0;      // router and order of the tokens, forward
  double hash = 0;      // hashing and clustering, forward
  double code = 0;      // row codecs, both ends
  double exchange = 0;  // routes, and waiting for rows
  double experts = 0;

  double total() const { return gate + hash + code + exchange + experts; }
  MoESeconds& operator+=(const MoESeconds& other) {
    gate += other.gate;
    hash += other.hash;
    code += other.code;
    exchange += other.exchange;
    experts += other.experts;
    return *this;
  }
  MoESeconds operator-(const MoESeconds& earlier) const {
    return {gate - earlier.gate, hash - earlier.hash, code - earlier.code,
            exchange - earlier.exchange, experts - earlier.experts};
  }
};

}  // namespace thinwire::moe
