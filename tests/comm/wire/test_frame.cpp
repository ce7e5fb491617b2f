#include "thinwire/comm/wire/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

FrameHeader sample() {
  return {.codec_id = 2,
          .dtype = 1,
          .status = FrameHeader::Status::kOk,
          .sender = 3,
          .chunk = 4,
          .layout = 0x0123456789ABCDEF,
          .sequence = 77,
          .numel = 10,
          .payload_bytes = 13,
          .payload_crc32c = 0,
          .blamed_rank = -1};
}

std::vector<std::byte> frame_of(const FrameHeader& header, std::size_t payload_bytes = 13) {
  std::vector<std::byte> frame(kFrameHeaderBytes + payload_bytes);
  for (std::size_t i = 0; i < payload_bytes; ++i) {
    frame[kFrameHeaderBytes + i] = static_cast<std::byte>(7 * i + 1);
  }
  write_frame_header(header, std::span(frame).subspan(kFrameHeaderBytes), frame);
  return frame;
}

void receive(std::span<const std::byte> frame, const FrameHeader& expected) {
  const FrameHeader found = read_frame_header(frame);
  verify_frame(found, expected, frame.subspan(kFrameHeaderBytes));
}

TEST(Frame, ReadsWhatWasWritten) {
  FrameHeader header = sample();
  header.status = FrameHeader::Status::kNonFinite;
  header.blamed_rank = 5;
  const auto frame = frame_of(header);
  FrameHeader found = read_frame_header(frame);
  EXPECT_NE(found.payload_crc32c, 0u);
  found.payload_crc32c = 0;
  EXPECT_EQ(found, header);
  // Status and blame are for the receiver to act on, not to verify.
  EXPECT_NO_THROW(receive(frame, sample()));
}

TEST(Frame, HasTheDocumentedBytes) {
  const auto frame = frame_of(sample());
  const std::vector<int> expected = {
      'T', 'W', 'W', 'F', 1,   0,    2,    0,    1,    0,    0,    0,    3,    0,  0, 0, 4, 0, 0,
      0,   255, 255, 255, 255, 0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45, 0x23, 0x01, 77, 0, 0, 0, 0, 0,
      0,   0,   10,  0,   0,   0,    0,    0,    0,    0,    13,   0,    0,    0,  0, 0, 0, 0};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(std::to_integer<int>(frame[i]), expected[i]) << "byte " << i;
  }
}

TEST(Frame, EmptyPayload) {
  FrameHeader header = sample();
  header.payload_bytes = 0;
  EXPECT_NO_THROW(receive(frame_of(header, 0), header));
}

TEST(Frame, EveryFlippedBitIsFound) {
  const auto frame = frame_of(sample());
  for (std::size_t bit = 0; bit < frame.size() * 8; ++bit) {
    auto damaged = frame;
    damaged[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    EXPECT_THROW(receive(damaged, sample()), FrameError) << "bit " << bit;
  }
}

TEST(Frame, EveryTruncationIsFound) {
  const auto frame = frame_of(sample());
  for (std::size_t size = 0; size < frame.size(); ++size) {
    EXPECT_THROW(receive(std::span(frame).first(size), sample()), FrameError) << size;
  }
}

struct Mismatch {
  const char* message;
  const char* found;
  const char* expected;
  std::function<void(FrameHeader&)> change;
};

class FrameField : public ::testing::TestWithParam<Mismatch> {};

TEST_P(FrameField, MismatchNamesSenderFieldAndBothValues) {
  FrameHeader other = sample();
  GetParam().change(other);
  const auto frame = frame_of(sample());
  EXPECT_THAT([&] { receive(frame, other); },
              ThrowsMessage<FrameError>(AllOf(HasSubstr("rank 3"), HasSubstr(GetParam().message),
                                              HasSubstr(GetParam().found),
                                              HasSubstr(GetParam().expected))));
}

INSTANTIATE_TEST_SUITE_P(
    All, FrameField,
    ::testing::Values(
        Mismatch{"sender", "is 3", "expected 8", [](auto& h) { h.sender = 8; }},
        Mismatch{"sequence", "is 77", "expected 78", [](auto& h) { h.sequence = 78; }},
        Mismatch{"layout", "is 81985529216486895", "expected 5", [](auto& h) { h.layout = 5; }},
        Mismatch{"chunk", "is 4", "expected 6", [](auto& h) { h.chunk = 6; }},
        Mismatch{"codec", "is 2", "expected 9", [](auto& h) { h.codec_id = 9; }},
        Mismatch{"dtype", "is 1", "expected 0", [](auto& h) { h.dtype = 0; }},
        Mismatch{"number of elements", "is 10", "expected 11", [](auto& h) { h.numel = 11; }},
        Mismatch{"payload's size", "is 13", "expected 12", [](auto& h) { h.payload_bytes = 12; }}));

TEST(Frame, SaysWhatIsWrongWithForeignBytes) {
  auto frame = frame_of(sample());
  frame[0] = std::byte{0};
  EXPECT_THAT([&] { read_frame_header(frame); },
              ThrowsMessage<FrameError>(HasSubstr("magic number")));
  frame = frame_of(sample());
  frame[4] = std::byte{2};
  EXPECT_THAT([&] { read_frame_header(frame); },
              ThrowsMessage<FrameError>(AllOf(HasSubstr("version is 2"), HasSubstr("expected 1"))));
  frame = frame_of(sample());
  frame[kFrameHeaderBytes] = std::byte{0};
  EXPECT_THAT([&] { receive(frame, sample()); },
              ThrowsMessage<FrameError>(HasSubstr("payload's checksum")));
}

}  // namespace
}  // namespace thinwire
