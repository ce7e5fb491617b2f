// The kernels that average in GPU memory as nvcc compiles them: their PTX is executed on the host
// for two ranks, with every access checked, and compared byte for byte with the codecs on the CPU.
// What breaks a kernel is shown to be found.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pieces_exchange.h"
#include "thinwire/tests/support/ptx/barriers.h"

namespace thinwire::testing {
namespace {

TEST(PiecesPtx, MeansAndResidualsOfEveryCodecAndDTypeEqualTheCpus) {
  for (const DType dtype : kAllDTypes) {
    for (const std::uint32_t threads : {32u, 256u}) {
      std::vector<Rank> ranks = ranks_of(dtype);
      for (Rank& rank : ranks) rank.threads = threads;
      const Expected expected = reference(ranks);
      Exchange{.seed = threads}.run(ranks);
      EXPECT_EQ(difference(ranks, expected), "") << name_of(dtype) << " by " << threads;
      for (const Rank& rank : ranks) {
        EXPECT_EQ(rank.words.refused, 0u);
        EXPECT_EQ(rank.words.not_finite, 0u);
        EXPECT_EQ(rank.verdict.kind, 0u);
      }
    }
  }
}

TEST(PiecesPtx, AStepThatIsNotFiniteChangesNoResidual) {
  for (const float poison : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    std::vector<Rank> ranks = ranks_of(DType::kFloat32, poison);
    const Expected expected = reference(ranks);
    ASSERT_FALSE(expected.finite);
    Exchange{}.run(ranks);
    EXPECT_EQ(difference(ranks, expected), "") << poison;
    for (const Rank& rank : ranks) EXPECT_EQ(rank.words.not_finite, 1u);
  }
}

TEST(PiecesPtx, AHeaderSaysWhatTheFrameIsAndItsChecksumIsThatOfAPlainLoop) {
  std::vector<Rank> ranks = ranks_of(DType::kFloat32);
  Exchange{}.run(ranks);
  const DeviceFrame& frame = ranks[1].frames[4];
  const std::byte* at = &ranks[1].workspace[frame.offset];
  const auto word = [&](const std::byte* from, std::size_t w) {
    std::uint32_t value;
    std::memcpy(&value, from + 4 * w, sizeof value);
    return value;
  };
  std::uint64_t sum = 0;
  std::vector<std::byte> payload(at + kDeviceHeaderBytes,
                                 at + kDeviceHeaderBytes + frame.payload_bytes);
  payload.resize((payload.size() + 3) / 4 * 4);
  ASSERT_NE(frame.payload_bytes % 4, 0u);
  for (std::size_t w = 0; w < payload.size() / 4; ++w)
    sum += frame_term(word(payload.data(), w), w);
  for (std::size_t w = 0; w < 14; ++w) sum += frame_term(word(at, w), kHeaderWords + w);
  EXPECT_EQ(word(at, 14) | std::uint64_t{word(at, 15)} << 32, sum);
  EXPECT_EQ(word(at, 0), kFrameMagic);
  EXPECT_EQ(word(at, 1), kDeviceFrameVersion | 0xFFFFu << 16);
  EXPECT_EQ(word(at, 2), 0u);
  EXPECT_EQ(word(at, 3), 1u);
  EXPECT_EQ(word(at, 4), 1u);
  EXPECT_EQ(word(at, 5), 0xFFFFFFFFu);
  EXPECT_EQ(word(at, 8), kSequence);
  EXPECT_EQ(word(at, 10), frame.numel);
  EXPECT_EQ(word(at, 12), frame.payload_bytes);
}

// Of every rank: what it noted.
std::vector<DeviceVerdict> verdicts_of(std::vector<Rank>& ranks, Exchange exchange) {
  const Expected before = [&] {
    Expected same;
    for (const Rank& rank : ranks) {
      same.residuals.push_back(rank.residuals);
      same.seconds.push_back(rank.seconds);
    }
    return same;
  }();
  exchange.run(ranks);
  std::vector<DeviceVerdict> verdicts;
  for (std::size_t r = 0; r < kRanks; ++r) {
    verdicts.push_back(ranks[r].verdict);
    if (verdicts[r].kind == 0) continue;
    EXPECT_EQ(ranks[r].words.refused, 1u);
    EXPECT_TRUE(ranks[r].residuals == before.residuals[r]) << "rank " << r << " has kept its loss";
    EXPECT_TRUE(ranks[r].seconds == before.seconds[r]) << "rank " << r << " has kept its second";
  }
  return verdicts;
}

TEST(PiecesPtx, ADamagedFrameOnItsWayToTheOwnerIsRefusedByAllRanks) {
  for (const std::size_t byte : {std::size_t{64}, std::size_t{64 + 700}, std::size_t{60}}) {
    std::vector<Rank> ranks = ranks_of(DType::kFloat32);
    const auto verdicts = verdicts_of(ranks, {.after_scatter = [&](Rank& rank) {
                                        if (rank.rank == 0)
                                          rank.workspace[rank.received(1) + byte] ^= std::byte{4};
                                      }});
    EXPECT_EQ(verdicts[0].kind, 2u);
    EXPECT_EQ(verdicts[0].sender, 1u);
    EXPECT_EQ(verdicts[0].field, static_cast<std::uint32_t>(FrameField::kChecksum));
    EXPECT_EQ(verdicts[0].sequence, kSequence);
    EXPECT_EQ(verdicts[0].bucket, 9u);
    EXPECT_EQ(verdicts[1].kind, 1u);
    EXPECT_EQ(verdicts[1].sender, 0u);
    EXPECT_EQ(verdicts[1].blamed, 1u);
  }
}

TEST(PiecesPtx, ADamagedMeanIsRefused) {
  std::vector<Rank> ranks = ranks_of(DType::kBFloat16);
  const auto verdicts = verdicts_of(ranks, {.after_gather = [](Rank& rank) {
                                      if (rank.rank == 1)
                                        std::swap(rank.workspace[rank.arrived(0) + 100],
                                                  rank.workspace[rank.arrived(0) + 104]);
                                    }});
  EXPECT_EQ(verdicts[0].kind, 0u);
  EXPECT_EQ(verdicts[1].kind, 2u);
  EXPECT_EQ(verdicts[1].sender, 0u);
}

TEST(PiecesPtx, EveryFieldOfAHeaderIsCompared) {
  struct Damage {
    std::size_t byte;
    FrameField field;
  };
  for (const Damage damage :
       {Damage{0, FrameField::kMagic}, Damage{4, FrameField::kVersion},
        Damage{12, FrameField::kSender}, Damage{33, FrameField::kSequence},
        Damage{31, FrameField::kLayout}, Damage{16, FrameField::kChunk},
        Damage{6, FrameField::kCodec}, Damage{41, FrameField::kNumel},
        Damage{48, FrameField::kPayloadBytes}, Damage{20, FrameField::kChecksum}}) {
    std::vector<Rank> ranks = ranks_of(DType::kFloat32);
    const auto verdicts = verdicts_of(ranks, {.after_scatter = [&](Rank& rank) {
                                        if (rank.rank == 1)
                                          rank.workspace[rank.received(0) + damage.byte] ^=
                                              std::byte{1};
                                      }});
    EXPECT_EQ(verdicts[1].kind, 2u);
    EXPECT_EQ(verdicts[1].field, static_cast<std::uint32_t>(damage.field));
    EXPECT_NE(verdicts[1].found, verdicts[1].expected);
  }
}

// What an exchange by mutants of the kernels tells: a fault as text, what differs, or nothing.
std::string finding(const std::vector<ptx::Kernel>& kernels) {
  return ptx::finding_of_seeds([&](std::uint64_t seed) {
    std::vector<Rank> ranks = ranks_of(DType::kFloat32);
    const Expected expected = reference(ranks);
    Exchange{.kernels = kernels, .seed = seed}.run(ranks);
    return difference(ranks, expected);
  });
}

TEST(PiecesPtx, EveryBarrierThatIsTakenOutIsFound) {
  const int barriers =
      ptx::expect_barriers_are_needed(compiled(),
                                      {"encode_pieces_kernelILNS_5DTypeE0", "reduce_pieces_kernel",
                                       "sum_frames_kernel", "13frames_kernel"},
                                      finding);
  EXPECT_GT(barriers, 20);
  EXPECT_EQ(finding(compiled()), "");
}

}  // namespace
}  // namespace thinwire::testing
