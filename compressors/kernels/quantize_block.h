// Quantising with one block of threads a bucket: the body of the CUDA kernels, see block.h. It
// shares its arithmetic with the CPU (quantize_math.h, quantize_layout.h, half_math.h, Philox),
// adds in the same order, and so gives the bits of quantize_ref.h.
//
// Note [Shared memory of a block]
// A body syncs where one thread reads what another wrote, and nowhere else; a bucket needs no sync
// against the next one of the same block. The last sync before packing parts all reads of the
// partial results from their next writes, and the syncs of the next bucket's reduction part all
// reads of the grid from its next write. tests/compressors/kernels/test_quantize_block.cpp runs
// rows of buckets on one block; without any one of the syncs ThreadSanitizer reports a race there.
#pragma once

#include "thinwire/compressors/kernels/block.h"
#include "thinwire/compressors/kernels/quantize_layout.h"
#include "thinwire/compressors/kernels/quantize_task.h"

namespace thinwire::kernels {

struct QuantizeShared {
  struct Partial {
    float lo, hi;
    bool finite;
  };
  Partial partial[kMaxBlockThreads];
  double squares[kGroupLanes];
  Bounds bounds;
  EncodeGrid grid;
};

// The place of one bucket in the tensor and in the payload.
struct BucketPlace {
  std::uint64_t first;     // element
  std::uint32_t elements;  // at most 2^24, so that bits of codes are counted in 32 bits
  std::uint64_t offset;    // byte of the payload
};

THINWIRE_HOST_DEVICE std::uint64_t bucket_count(const QuantizeShape& shape) {
  return static_cast<std::uint64_t>((shape.numel + shape.bucket - 1) / shape.bucket);
}

THINWIRE_HOST_DEVICE BucketPlace place_of(const QuantizeShape& shape, std::uint64_t bucket) {
  const auto full = static_cast<std::uint64_t>(shape.bucket);
  const std::uint64_t first = bucket * full;
  const std::uint64_t left = static_cast<std::uint64_t>(shape.numel) - first;
  return {first, static_cast<std::uint32_t>(left < full ? left : full),
          bucket * bucket_bytes(shape.norm, shape.bits, full)};
}

// Leaves bounds and grid of the bucket in `shared`, for every thread to read.
//
// Extremes are reduced in a tree: their bits do not depend on the order (quantize_layout.h's
// bounds_of() sees to zeros, and to NaN, which comparisons ignore). Sums do depend on it, so the
// sixteen sums of squares of the norm l2 are added one element after the other, as the reference
// does, by a thread each. That is slow for large buckets, and the price of equal bits.
template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void analyse_bucket(Context& block, QuantizeShared& shared,
                                         const QuantizeTask& task, const BucketPlace& place) {
  const std::uint32_t thread = block.thread(), size = block.size();
  const BucketStatistics none;
  QuantizeShared::Partial mine{none.lo, none.hi, none.finite};
  for (std::uint32_t i = thread; i < place.elements; i += size) {
    const float x = load_element<kType>(task.input, place.first + i);
    mine.finite = mine.finite && is_finite(x);
    mine.lo = x < mine.lo ? x : mine.lo;
    mine.hi = x > mine.hi ? x : mine.hi;
  }
  shared.partial[thread] = mine;
  if (task.shape.norm == Norm::kL2) {
    for (std::uint32_t lane = thread; lane < kGroupLanes; lane += size) {
      double sum = 0;
      for (std::uint32_t i = lane; i < place.elements; i += kGroupLanes) {
        const auto x = static_cast<double>(load_element<kType>(task.input, place.first + i));
        sum += x * x;
      }
      shared.squares[lane] = sum;
    }
  }
  block.sync();
  std::uint32_t half = 1;
  while (2 * half < size) half *= 2;
  for (; half > 0; half /= 2) {
    if (thread < half && thread + half < size) {
      const QuantizeShared::Partial other = shared.partial[thread + half];
      mine.finite = mine.finite && other.finite;
      mine.lo = other.lo < mine.lo ? other.lo : mine.lo;
      mine.hi = other.hi > mine.hi ? other.hi : mine.hi;
      shared.partial[thread] = mine;
    }
    block.sync();
  }
  if (thread == 0) {
    BucketStatistics all;
    all.lo = mine.lo;
    all.hi = mine.hi;
    all.finite = mine.finite;
    if (task.shape.norm == Norm::kL2) {
      for (std::uint32_t lane = 0; lane < kGroupLanes; ++lane) {
        all.squares[lane] = shared.squares[lane];
      }
    }
    // Stored by themselves: GCC's ThreadSanitizer does not see a function's result being stored.
    const Bounds bounds = bounds_of(task.shape.norm, all);
    const EncodeGrid grid = encode_grid(levels_of(task.shape.norm, task.shape.bits), bounds);
    shared.bounds = bounds;
    shared.grid = grid;
  }
  block.sync();
}

// The bits [begin, begin + width) of a stream of `count` codes, code_at(k) at bit k · bits.
template <typename CodeAt>
THINWIRE_HOST_DEVICE std::uint32_t packed_bits(std::uint32_t begin, std::uint32_t width,
                                               std::uint32_t bits, std::uint32_t count,
                                               const CodeAt& code_at) {
  std::uint32_t packed = 0;
  for (std::uint32_t k = begin / bits; k < count && k * bits < begin + width; ++k) {
    const std::uint32_t code = code_at(k), at = k * bits;
    packed |= at >= begin ? code << (at - begin) : code >> (begin - at);
  }
  return packed;
}

// Rounds and packs the bucket: a thread makes one word of a stream at a time, so that neighbours
// read neighbouring elements and write neighbouring words, and a code that reaches from one word
// into the next is computed by both. What is shorter than a group is made in bytes.
template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void pack_bucket(const Context& block, const QuantizeShared& shared,
                                      const QuantizeTask& task, const BucketPlace& place) {
  const auto bits = static_cast<std::uint32_t>(task.shape.bits);
  const Levels levels = levels_of(task.shape.norm, task.shape.bits);
  const bool finite = is_finite(shared.bounds.hi);
  const auto code_at = [&](std::uint32_t i) -> std::uint32_t {
    if (!finite) return 0;
    const std::uint64_t element = place.first + i;
    const float x = load_element<kType>(task.input, element);
    const int level = task.stochastic
                          ? level_stochastic(levels, shared.grid, x,
                                             task.random.uniform(task.first_element + element))
                          : level_nearest(shared.grid, x);
    return static_cast<std::uint32_t>(level - levels.lowest);
  };
  constexpr auto kLanes = static_cast<std::uint32_t>(kGroupLanes);
  constexpr auto kGroup = static_cast<std::uint32_t>(kGroupElements);
  std::byte* codes = task.payload + place.offset;
  if (block.thread() == 0) write_header(task.shape.norm, shared.bounds, codes);
  codes += header_bytes(task.shape.norm);

  const std::uint32_t grouped = place.elements / kGroup * kGroup;
  const std::uint32_t words = grouped / 32 * bits;
  for (std::uint32_t w = block.thread(); w < words; w += block.size()) {
    const std::uint32_t first = w / (kLanes * bits) * kGroup + w % kLanes;
    const std::uint32_t begin = w % (kLanes * bits) / kLanes * 32;
    const std::uint32_t word = packed_bits(
        begin, 32, bits, 32, [&](std::uint32_t k) { return code_at(first + k * kLanes); });
    store_word(codes + std::size_t{4} * w, word);
  }
  codes += std::size_t{4} * words;
  const std::uint32_t rest = place.elements - grouped;
  const auto rest_bytes = static_cast<std::uint32_t>(code_bytes(task.shape.bits, rest));
  for (std::uint32_t b = block.thread(); b < rest_bytes; b += block.size()) {
    codes[b] = static_cast<std::byte>(
        packed_bits(8 * b, 8, bits, rest, [&](std::uint32_t k) { return code_at(grouped + k); }));
  }
}

// Code `i` of a bucket of `elements`, from where its codes begin.
THINWIRE_HOST_DEVICE std::uint32_t unpacked_code(const std::byte* codes, std::uint32_t bits,
                                                 std::uint32_t elements, std::uint32_t i) {
  constexpr auto kLanes = static_cast<std::uint32_t>(kGroupLanes);
  constexpr auto kGroup = static_cast<std::uint32_t>(kGroupElements);
  const std::uint32_t mask = (1u << bits) - 1;
  const std::uint32_t grouped = elements / kGroup * kGroup;
  if (i < grouped) {
    const std::uint32_t at = i % kGroup / kLanes * bits;
    const std::uint32_t word = i / kGroup * kLanes * bits + at / 32 * kLanes + i % kLanes;
    const std::byte* stream = codes + std::size_t{4} * word;
    const std::uint32_t shift = at % 32;
    std::uint32_t code = load_word(stream) >> shift;
    if (shift + bits > 32) code |= load_word(stream + 4 * kLanes) << (32 - shift);
    return code & mask;
  }
  const std::uint32_t at = (i - grouped) * bits;
  const std::byte* byte = codes + std::size_t{grouped} / 8 * bits + at / 8;
  std::uint32_t code = static_cast<std::uint32_t>(byte[0]);
  if (at % 8 + bits > 8) code |= static_cast<std::uint32_t>(byte[1]) << 8;
  return code >> (at % 8) & mask;
}

// Decodes the bucket. Threads work by themselves.
template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void unpack_bucket(const Context& block, const QuantizeShape& shape,
                                        const std::byte* payload, const BucketPlace& place,
                                        void* output, bool accumulate) {
  const Levels levels = levels_of(shape.norm, shape.bits);
  const std::byte* codes = payload + place.offset;
  const Bounds bounds = read_header(shape.norm, codes);
  const DecodeGrid grid = decode_grid(levels, bounds);
  codes += header_bytes(shape.norm);
  const auto bits = static_cast<std::uint32_t>(shape.bits);
  for (std::uint32_t i = block.thread(); i < place.elements; i += block.size()) {
    float value = bounds.hi;
    if (is_finite(bounds.hi)) {
      const auto code = static_cast<int>(unpacked_code(codes, bits, place.elements, i));
      value = limited_to(kType, value_of(levels, grid, code + levels.lowest));
    }
    if (accumulate) {
      add_to_element<kType>(output, place.first + i, value);
    } else {
      store_element<kType>(output, place.first + i, value);
    }
  }
}

// Encodes one bucket and, where the task asks for it, reconstructs it; by all threads of a block.
template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void quantize_bucket(Context& block, QuantizeShared& shared,
                                          const QuantizeTask& task, std::uint64_t bucket) {
  const BucketPlace place = place_of(task.shape, bucket);
  analyse_bucket<kType>(block, shared, task, place);
  pack_bucket<kType>(block, shared, task, place);
  if (task.reconstruction == nullptr) return;
  // Others' codes are read next, and others may still read the input, which may be overwritten.
  block.sync();
  unpack_bucket<kType>(block, task.shape, task.payload, place, task.reconstruction, false);
}

template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void dequantize_bucket(const Context& block, const DequantizeTask& task,
                                            std::uint64_t bucket) {
  unpack_bucket<kType>(block, task.shape, task.payload, place_of(task.shape, bucket), task.output,
                       task.accumulate);
}

}  // namespace thinwire::kernels
