// The header of a frame, and whether a payload fits it.
#include "thinwire/comm/wire/frame.h"
#include "thinwire/tests/fuzz/fuzz_target.h"

using namespace thinwire;  // NOLINT(google-build-using-namespace): a program of one file

namespace {

FrameHeader expected() {
  return {.codec_id = 2, .sender = 1, .chunk = 3, .layout = 77, .sequence = 5, .numel = 1000};
}

}  // namespace

std::vector<fuzz::Input> fuzz::seeds() {
  std::vector<Input> all;
  for (const std::size_t bytes : {0, 1, 64, 1000}) {
    const std::vector<std::byte> payload(bytes, std::byte{7});
    Input input(kFrameHeaderBytes + bytes);
    write_frame_header(expected(), payload, std::as_writable_bytes(std::span(input)));
    std::memcpy(input.data() + kFrameHeaderBytes, payload.data(), bytes);
    all.push_back(input);
  }
  return all;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::expect_taken_or_refused([&] {
    const auto bytes = fuzz::bytes_of(data, size);
    const FrameHeader found = read_frame_header(bytes);
    FrameHeader wanted = expected();
    wanted.payload_bytes = found.payload_bytes;
    const auto payload = bytes.subspan(kFrameHeaderBytes);
    verify_frame(found, wanted, payload);
  });
  return 0;
}
