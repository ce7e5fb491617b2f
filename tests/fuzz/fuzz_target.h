// A fuzz target: one function that takes any bytes, and inputs to start from.
//
// Each fuzz_*.cpp defines both functions. In the preset "fuzz" they are linked with libFuzzer,
// which looks for new paths through the code; elsewhere with driver.cpp, which mutates the seeds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <iostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "thinwire/common/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace thinwire::fuzz {

using Input = std::vector<std::uint8_t>;

// Valid inputs of the target that this program holds.
std::vector<Input> seeds();

inline std::span<const std::byte> bytes_of(const std::uint8_t* data, std::size_t size) {
  return std::as_bytes(std::span(data, size));
}

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

inline Input input_of(std::string_view text) {
  return {text.begin(), text.end()};
}

// Takes numbers off the front of an input; zero where it is too short.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename Number>
  Number take() {
    Number value{};
    const std::size_t count = std::min(sizeof value, bytes_.size());
    std::memcpy(&value, bytes_.data(), count);
    bytes_ = bytes_.subspan(count);
    return value;
  }
  std::span<const std::byte> rest() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

// What a decoder may do with bytes that nobody vouches for: take them, or refuse them by one of the
// library's errors for bad input. Anything else, such as an internal assertion or memory without
// bounds, ends the program, which is a finding.
template <typename Action>
void expect_taken_or_refused(const Action& action) {
  try {
    action();
  } catch (const FrameError&) {
  } catch (const FileError&) {
  } catch (const InvalidArgument&) {
  } catch (const std::exception& error) {
    std::cerr << "finding: an error that is none of bad input: " << error.what() << std::endl;
    std::abort();
  }
}

}  // namespace thinwire::fuzz
