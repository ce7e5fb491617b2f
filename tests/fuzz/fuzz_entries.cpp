// Sparse entries as owners of index ranges send them.
//
// Input: u16 number of elements, then the payload.
#include "thinwire/comm/wire/sparse_entries.h"
#include "thinwire/tests/fuzz/fuzz_target.h"

using namespace thinwire;  // NOLINT(google-build-using-namespace): a program of one file

std::vector<fuzz::Input> fuzz::seeds() {
  std::vector<Input> all;
  for (const std::uint16_t numel : {std::uint16_t{10}, std::uint16_t{1000}}) {
    for (const std::uint32_t every : {1u, 3u, 50u}) {
      for (const float value : {1.0f, 0.1f, 1e-3f}) {
        comm::LayeredEntries entries;
        for (std::uint32_t i = 0; i < numel; i += every)
          entries.add(i, i % 2 == 0 ? value : -value * static_cast<float>(i % 5));
        Input input(2 + comm::max_entries_bytes(numel));
        std::memcpy(input.data(), &numel, 2);
        input.resize(2 + comm::encode_entries(entries, numel,
                                              std::as_writable_bytes(std::span(input)).subspan(2)));
        all.push_back(input);
      }
    }
  }
  return all;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Reader read(fuzz::bytes_of(data, size));
  const std::uint64_t numel = read.take<std::uint16_t>();
  const std::vector<std::byte> payload(read.rest().begin(), read.rest().end());
  fuzz::expect_taken_or_refused([&] {
    SparseEntries entries;
    comm::decode_entries(payload, numel, entries);
    for (const std::uint32_t index : entries.indices) {
      if (index >= numel) throw InternalError("an index lies beyond the vector");
    }
  });
  return 0;
}
