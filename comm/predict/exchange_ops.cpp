#include "thinwire/comm/predict/exchange_ops.h"

#include <algorithm>

#include "thinwire/comm/average/reduce/partition.h"
#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

class OpsBuilder {
 public:
  explicit OpsBuilder(const BackendLink& link) : link_(link) {}

  void begin() { part_ = &ops.begin; }
  void advance() { part_ = &ops.advance; }
  void finish() { part_ = &ops.finish; }

  void code(double seconds) { part_->push_back({.seconds = seconds}); }
  // A call of a collective in which one rank sends so much; returns the message's number. What all
  // send goes through a part of the ranks, `crowding` times as much as if each had its share.
  int post(Collective collective, double bytes, double crowding = 1) {
    const AlphaBeta& cost = link_.of(collective);
    part_->push_back({.kind = ExchangeOp::Kind::kPost,
                      .seconds = cost.alpha,
                      .message = messages_,
                      .bytes = bytes,
                      .per_byte = cost.beta * crowding});
    return messages_++;
  }
  int post_seconds(double seconds) {
    part_->push_back({.kind = ExchangeOp::Kind::kPost, .seconds = seconds, .message = messages_});
    return messages_++;
  }
  void wait(int message) {
    part_->push_back({.kind = ExchangeOp::Kind::kWait, .message = message});
  }

  ExchangeOps ops;

 private:
  const BackendLink& link_;
  std::vector<ExchangeOp>* part_ = nullptr;
  int messages_ = 0;
};

struct Numbers {
  double floats, payload, dense, others, world, frame;
  double owners;  // ranks that own anything of a chunk
  CodecCost cost;
};

// As ScatterReduce does it: everything is sent, and what is not sent encoded, then everything
// reduced, then the means decoded as they come.
void scatter_reduce(OpsBuilder& build, const Numbers& n, int chunks) {
  const double part = 1.0 / chunks;
  const double travels = n.others / n.world;
  const double leg = travels * (part * (n.payload + n.dense) + n.owners * n.frame);
  const double crowding = n.world / n.owners;
  std::vector<int> scatter, gather;
  build.begin();
  for (int chunk = 0; chunk < chunks; ++chunk) {
    build.code(part * travels * n.floats * n.cost.compress);
    scatter.push_back(build.post(Collective::kAllToAll, leg, crowding));
  }
  build.code((1 - travels) * n.floats * n.cost.compress);
  build.advance();
  for (const int message : scatter) {
    build.wait(message);
    // The own slice of everyone's payloads, and its mean.
    build.code(part * n.floats * crowding * (n.cost.accumulate + n.cost.compress / n.world));
  }
  for (int chunk = 0; chunk < chunks; ++chunk) {
    gather.push_back(build.post(Collective::kAllToAll, leg, crowding));
  }
  build.finish();
  for (const int message : gather) {
    build.wait(message);
    build.code(part * n.floats * n.cost.decompress);
  }
}

void gather_reduce(OpsBuilder& build, const Numbers& n) {
  build.begin();
  build.code(n.floats * (n.cost.compress + n.cost.decompress));
  const int sizes = build.post(Collective::kAllGather, n.others * sizeof(std::int64_t));
  build.advance();
  build.wait(sizes);
  const int frames = build.post(Collective::kAllGather, n.others * (n.payload + n.dense + n.frame));
  build.finish();
  build.wait(frames);
  build.code(n.floats * (n.cost.decompress + n.others * n.cost.accumulate));
}

void sparse(OpsBuilder& build, const Numbers& n, double sent) {
  const double sizes_bytes = n.others * sizeof(std::int64_t);
  const double half = (sent + 2 * n.others / n.world * n.dense) / 2;
  build.begin();
  build.code(n.floats * n.cost.compress);
  const int sizes = build.post(Collective::kAllToAll, sizes_bytes);
  build.advance();
  build.wait(sizes);
  const int entries = build.post(Collective::kAllToAll, half);
  build.wait(entries);
  build.code(n.floats * n.cost.accumulate);
  const int mean_sizes = build.post(Collective::kAllGather, sizes_bytes);
  build.wait(mean_sizes);
  const int means = build.post(Collective::kAllGather, half);
  build.finish();
  build.wait(means);
  build.code(n.floats * n.cost.decompress);
}

// Means of what can be added, each there and back: one, or two for each round of low rank.
void means(OpsBuilder& build, const Numbers& n, int count) {
  const double leg = n.others / n.world * (n.payload + n.dense) / count + n.others * n.frame;
  build.begin();
  build.code(n.floats * n.cost.compress / count);
  int there = build.post(Collective::kAllToAll, leg);
  build.advance();
  for (int i = 0; i < count; ++i) {
    if (i > 0) {
      build.code(n.floats * n.cost.compress / count);
      there = build.post(Collective::kAllToAll, leg);
    }
    build.wait(there);
    const int back = build.post(Collective::kAllToAll, leg);
    if (i + 1 == count) build.finish();
    build.wait(back);
  }
  build.code(n.floats * n.cost.decompress);
}

}  // namespace

double ExchangeOps::coding_seconds() const {
  double seconds = 0;
  for (const auto* part : {&begin, &advance, &finish}) {
    for (const ExchangeOp& op : *part) {
      if (op.kind == ExchangeOp::Kind::kCode) seconds += op.seconds;
    }
  }
  return seconds;
}

double ExchangeOps::sent_bytes() const {
  double bytes = 0;
  for (const auto* part : {&begin, &advance, &finish}) {
    for (const ExchangeOp& op : *part) bytes += op.bytes;
  }
  return bytes;
}

ExchangeOps exchange_ops(const BucketUse& bucket, const PredictedPlace& place,
                         const BackendLink& link) {
  check(place.world >= 1 && place.hosts >= 1 && place.hosts <= place.world,
        "a job has at least one host and one rank a host, got ", place.world, " ranks on ",
        place.hosts, " hosts");
  OpsBuilder build(link);
  if (place.world == 1) return build.ops;
  Numbers n = {.floats = static_cast<double>(bucket.codec.numel) * sizeof(float),
               .payload = static_cast<double>(bucket.codec.payload_bytes),
               .dense = bucket.uncompressed_bytes,
               .others = static_cast<double>(place.world - 1),
               .world = static_cast<double>(place.world),
               .frame = static_cast<double>(kFrameHeaderBytes),
               .owners = static_cast<double>(place.world),
               .cost = bucket.codec.cost};
  if (!bucket.strategy) {
    build.begin();
    build.code(n.dense * place.scale_cost);
    const int sum = build.post(Collective::kAllReduce,
                               sent_bytes(Collective::kAllReduce, n.dense, place.world));
    build.finish();
    build.wait(sum);
    return build.ops;
  }
  const ReductionPlace table_place = {.tensor_bytes = bucket.compressed_bytes,
                                      .world = place.world,
                                      .hosts = place.hosts,
                                      .frame_bytes = n.frame};
  switch (*bucket.strategy) {
    case Strategy::kScatterReduce: {
      const double bytes = bucket.compressed_bytes + bucket.uncompressed_bytes;
      const int chunks = chunk_count(bytes, n.payload + n.dense, place.world, place.chunk_bytes);
      CodecUse of_chunk = bucket.codec;
      if (of_chunk.blocks > 0) {
        // Uncompressed layers beside them can be cut anywhere.
        of_chunk.blocks += static_cast<std::int64_t>(bucket.uncompressed_bytes / sizeof(float));
        of_chunk.blocks = (of_chunk.blocks + chunks - 1) / chunks;
      }
      n.owners = of_chunk.owners(place.world);
      scatter_reduce(build, n, chunks);
      break;
    }
    case Strategy::kGatherReduce:
      gather_reduce(build, n);
      break;
    case Strategy::kSparse:
      sparse(build, n, sent_bytes(Strategy::kSparse, bucket.codec, table_place));
      break;
    case Strategy::kDense:
      means(build, n, 1);
      break;
    case Strategy::kLowRank:
      means(build, n, 2 * std::max(1, bucket.codec.facts.iterations));
      break;
    case Strategy::kHierarchical: {
      build.begin();
      build.code(n.floats * n.cost.compress);
      const int all = build.post_seconds(
          message_seconds(Strategy::kHierarchical, bucket.codec, table_place, link));
      build.finish();
      build.wait(all);
      build.code(n.floats * n.cost.decompress);
      break;
    }
  }
  return build.ops;
}

}  // namespace thinwire::comm
