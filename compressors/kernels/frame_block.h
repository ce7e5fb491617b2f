// The frames of an exchange in GPU memory: sums of their payloads, headers of those that leave, and
// a look at those that have come. Bodies of kernels, see block.h; the tables are piece_task.h's.
//
// A header is that of comm/wire/frame.h with version 2, in whose last eight bytes is one checksum
// of header and payload (frame_sum.h), since a CRC has to be taken byte after byte. docs/format.md.
#pragma once

#include "thinwire/compressors/kernels/block.h"
#include "thinwire/compressors/kernels/frame_sum.h"
#include "thinwire/compressors/kernels/piece_task.h"

namespace thinwire::kernels {

inline constexpr std::uint32_t kFrameMagic = 0x46575754;  // "TWWF"
inline constexpr std::uint32_t kDeviceFrameVersion = 2;

// FrameHeader::Status.
inline constexpr std::uint32_t kFrameOk = 0, kFramePeerInvalid = 1, kFrameNotFinite = 2;

struct SumShared {
  std::uint64_t sums[kMaxBlockThreads];
};

// The word of a payload that begins at byte `at`, from memory that is aligned to words.
THINWIRE_HOST_DEVICE std::uint32_t word_of(const std::byte* payload, std::uint32_t at,
                                           std::uint32_t bytes) {
  if (bytes - at >= 4) return load_word(payload + at);
  std::uint32_t word = 0;
  for (std::uint32_t b = at; b < bytes; ++b) {
    word |= static_cast<std::uint32_t>(payload[b]) << (8 * (b - at));
  }
  return word;
}

template <typename Context>
THINWIRE_HOST_DEVICE void sum_segment(Context& block, SumShared& shared, const SumTask& task,
                                      std::uint32_t segment) {
  const std::uint32_t thread = block.thread(), size = block.size();
  const DeviceFrame& frame =
      task.frames[last_begun(task.frames, task.count, &DeviceFrame::first_segment, segment)];
  const std::uint64_t begin = std::uint64_t{segment - frame.first_segment} * kSegmentBytes;
  const std::uint64_t left = frame.payload_bytes - begin;
  const auto bytes = static_cast<std::uint32_t>(left < kSegmentBytes ? left : kSegmentBytes);
  const std::byte* const payload = task.workspace + frame.offset + kDeviceHeaderBytes + begin;
  std::uint64_t sum = 0;
  const std::uint32_t whole = bytes / 16;
  for (std::uint32_t quad = thread; quad < whole; quad += size) {
    std::uint32_t words[4];
    std::memcpy(words, __builtin_assume_aligned(payload + std::size_t{16} * quad, 16), 16);
    for (std::uint32_t w = 0; w < 4; ++w) {
      sum += frame_term(words[w], begin / 4 + std::uint64_t{4} * quad + w);
    }
  }
  for (std::uint32_t at = 16 * whole + 4 * thread; at < bytes; at += 4 * size) {
    sum += frame_term(word_of(payload, at, bytes), (begin + at) / 4);
  }
  shared.sums[thread] = sum;
  block.sync();
  std::uint32_t half = 1;
  while (2 * half < size) half *= 2;
  for (; half > 0; half /= 2) {
    if (thread < half && thread + half < size) shared.sums[thread] += shared.sums[thread + half];
    block.sync();
  }
  if (thread == 0) task.sums[segment] = shared.sums[0];
}

struct FrameHeaderWords {
  std::uint32_t word[kDeviceHeaderBytes / 4];
};

// All but the checksum.
THINWIRE_HOST_DEVICE FrameHeaderWords header_words(const FrameTask& task, const DeviceFrame& frame,
                                                   std::uint32_t status, std::int32_t blamed) {
  const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
  return {{kFrameMagic, kDeviceFrameVersion | frame.codec << 16, status << 8, frame.sender,
           frame.chunk, static_cast<std::uint32_t>(blamed), low(task.layout), high(task.layout),
           low(task.sequence), high(task.sequence), low(frame.numel), high(frame.numel),
           low(frame.payload_bytes), high(frame.payload_bytes), 0, 0}};
}

THINWIRE_HOST_DEVICE std::uint64_t checksum_of(const FrameHeaderWords& header,
                                               std::uint64_t payload_sum) {
  constexpr std::uint32_t kSummed = kDeviceHeaderBytes / 4 - 2;
  for (std::uint32_t w = 0; w < kSummed; ++w) {
    payload_sum += frame_term(header.word[w], kHeaderWords + w);
  }
  return payload_sum;
}

// What a look at one frame gave.
struct FrameFinding {
  std::uint32_t kind, sender, blamed, field;  // as in DeviceVerdict
  std::uint64_t found, expected;
  bool not_finite;
};

THINWIRE_HOST_DEVICE FrameFinding look_at(const FrameTask& task, std::uint32_t arrival,
                                          std::uint64_t payload_sum) {
  const DeviceFrame& frame = task.arrived[arrival];
  const std::byte* const at = task.workspace + frame.offset;
  FrameHeaderWords found;
  for (std::uint32_t w = 0; w < kDeviceHeaderBytes / 4; ++w) {
    found.word[w] = load_word(at + std::size_t{4} * w);
  }
  const std::uint32_t status = found.word[2] >> 8 & 0xFFu;
  const FrameHeaderWords expected =
      header_words(task, frame, status, static_cast<std::int32_t>(found.word[5]));
  const auto both = [](const FrameHeaderWords& words, std::uint32_t w) {
    return words.word[w] | std::uint64_t{words.word[w + 1]} << 32;
  };
  const std::uint64_t checksum = checksum_of(found, payload_sum);
  struct Field {
    FrameField field;
    std::uint64_t found, expected;
  };
  const Field fields[] = {
      {FrameField::kMagic, found.word[0], expected.word[0]},
      {FrameField::kVersion, found.word[1] & 0xFFFFu, expected.word[1] & 0xFFFFu},
      {FrameField::kSender, found.word[3], expected.word[3]},
      {FrameField::kSequence, both(found, 8), both(expected, 8)},
      {FrameField::kLayout, both(found, 6), both(expected, 6)},
      {FrameField::kChunk, found.word[4], expected.word[4]},
      {FrameField::kCodec, found.word[1] >> 16, expected.word[1] >> 16},
      {FrameField::kNumel, both(found, 10), both(expected, 10)},
      {FrameField::kPayloadBytes, both(found, 12), both(expected, 12)},
      {FrameField::kChecksum, both(found, 14), checksum},
  };
  for (const Field& field : fields) {
    if (field.found == field.expected) continue;
    return {2,           frame.sender,   0,    static_cast<std::uint32_t>(field.field),
            field.found, field.expected, false};
  }
  if (status != kFrameOk && status != kFrameNotFinite) {
    return {1, frame.sender, found.word[5], 0, 0, 0, false};
  }
  if (task.states != nullptr && task.states[arrival].fault != SlotFault::kNone) {
    return {2,
            frame.sender,
            0,
            static_cast<std::uint32_t>(FrameField::kSlot),
            static_cast<std::uint64_t>(task.states[arrival].fault),
            0,
            false};
  }
  return {0, 0, 0, 0, 0, 0, status == kFrameNotFinite};
}

// Threads work in teams, a frame a team.
inline constexpr std::uint32_t kTeamThreads = 32;

struct FrameShared {
  std::uint64_t sums[kMaxBlockThreads];
  FrameFinding findings[kMaxBlockThreads];  // by team
  bool all[kMaxBlockThreads];
  ExchangeWords words;
  std::uint32_t blamed;  // whose frame was refused in this launch
};

struct Team {
  std::uint32_t threads, lane, number, count;
};

template <typename Context>
THINWIRE_HOST_DEVICE Team team_of(const Context& block) {
  const std::uint32_t threads = block.size() < kTeamThreads ? block.size() : kTeamThreads;
  return {threads, block.thread() % threads, block.thread() / threads, block.size() / threads};
}

// Of the frame of this thread's team, for its lane 0 to read. `frame` is null for a team that has
// none, which takes part in the sync.
template <typename Context>
THINWIRE_HOST_DEVICE std::uint64_t payload_sum(Context& block, FrameShared& shared,
                                               const Team& team, const FrameTask& task,
                                               const DeviceFrame* frame) {
  std::uint64_t sum = 0;
  if (frame != nullptr) {
    for (std::uint32_t s = team.lane; s < frame->segments; s += team.threads) {
      sum += task.sums[frame->first_segment + s];
    }
  }
  shared.sums[block.thread()] = sum;
  block.sync();
  if (team.lane == 0) {
    for (std::uint32_t t = 1; t < team.threads; ++t) sum += shared.sums[block.thread() + t];
  }
  return sum;
}

// Whether all tiles of a run are marked, for lane 0 of the team; `run` as above.
template <typename Context>
THINWIRE_HOST_DEVICE bool all_marked(Context& block, FrameShared& shared, const Team& team,
                                     const std::uint32_t* marks, const LayerTiles* run) {
  bool all = true;
  if (run != nullptr) {
    for (std::uint64_t t = team.lane; t < run->tiles; t += team.threads) {
      all = all && marks[run->first_tile + t] != 0;
    }
  }
  shared.all[block.thread()] = all;
  block.sync();
  if (team.lane == 0) {
    for (std::uint32_t t = 1; t < team.threads; ++t) all = all && shared.all[block.thread() + t];
  }
  return all;
}

// Thread 0: notes what a team has found.
THINWIRE_HOST_DEVICE void note(FrameShared& shared, const FrameTask& task,
                               const FrameFinding& finding) {
  if (finding.not_finite) shared.words.not_finite = 1;
  if (finding.kind == 0) return;
  shared.words.refused = 1;
  if (shared.blamed == UINT32_MAX) shared.blamed = finding.sender;
  if (finding.kind <= task.verdict->kind) return;
  *task.verdict = {finding.kind,  finding.sender,   finding.blamed, finding.field,
                   finding.found, finding.expected, task.sequence,  task.bucket};
}

// The one block of its launch.
template <typename Context>
THINWIRE_HOST_DEVICE void handle_frames(Context& block, FrameShared& shared,
                                        const FrameTask& task) {
  const Team team = team_of(block);
  if (block.thread() == 0) {
    shared.words = task.begins ? ExchangeWords{0, 0} : *task.words;
    shared.blamed = UINT32_MAX;
  }
  for (std::uint32_t first = 0; first < task.arrivals; first += team.count) {
    const std::uint32_t mine = first + team.number;
    const DeviceFrame* frame = mine < task.arrivals ? task.arrived + mine : nullptr;
    const std::uint64_t sum = payload_sum(block, shared, team, task, frame);
    if (team.lane == 0 && frame != nullptr) {
      const FrameFinding finding = look_at(task, mine, sum);
      shared.findings[team.number] = finding;
    }
    block.sync();
    if (block.thread() == 0) {
      for (std::uint32_t t = 0; t < team.count && first + t < task.arrivals; ++t) {
        note(shared, task, shared.findings[t]);
      }
    }
  }
  if (block.thread() == 0) *task.words = shared.words;
  block.sync();
  const ExchangeWords words = shared.words;
  const std::uint32_t blamed = shared.blamed;
  for (std::uint32_t first = 0; first < task.departures; first += team.count) {
    const std::uint32_t mine = first + team.number;
    const DeviceFrame* frame = mine < task.departures ? task.leaving + mine : nullptr;
    const std::uint64_t sum = payload_sum(block, shared, team, task, frame);
    LayerTiles made{};
    if (frame != nullptr) made = {frame->first_tile, frame->tiles};
    const bool finite = all_marked(block, shared, team, task.mean_finite, &made);
    if (team.lane == 0 && frame != nullptr) {
      const bool refuses = blamed != UINT32_MAX;
      const std::uint32_t status = refuses  ? kFramePeerInvalid
                                   : finite ? kFrameOk
                                            : kFrameNotFinite;
      const FrameHeaderWords header =
          header_words(task, *frame, status, refuses ? static_cast<std::int32_t>(blamed) : -1);
      const std::uint64_t checksum = checksum_of(header, sum);
      std::byte* const at = task.workspace + frame->offset;
      for (std::uint32_t w = 0; w < kDeviceHeaderBytes / 4 - 2; ++w) {
        store_word(at + std::size_t{4} * w, header.word[w]);
      }
      store_word(at + kDeviceHeaderBytes - 8, static_cast<std::uint32_t>(checksum));
      store_word(at + kDeviceHeaderBytes - 4, static_cast<std::uint32_t>(checksum >> 32));
    }
  }
  const bool counts = words.refused == 0 && words.not_finite == 0;
  for (std::uint32_t first = 0; first < task.layer_count; first += team.count) {
    const std::uint32_t mine = first + team.number;
    const LayerTiles* layer = mine < task.layer_count ? task.layers + mine : nullptr;
    block.sync();  // the marks before these may still be read
    const bool finite = all_marked(block, shared, team, task.residual_finite, layer);
    if (team.lane == 0 && layer != nullptr) task.keep[mine] = counts && finite ? 1 : 0;
  }
}

}  // namespace thinwire::kernels
