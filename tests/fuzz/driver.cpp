// Runs a fuzz target where there is no libFuzzer: every seed, every kept finding, then mutations of
// these, drawn from a seed number, so that a run can be repeated.
//
//   fuzz_x [--runs N] [--seconds S] [--seed K] [FILE or FOLDER...]
//
// An input that ends the program is left in crash-<target>.bin beside where it ran.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "thinwire/tests/fuzz/fuzz_target.h"

namespace {

using thinwire::fuzz::Input;

Input current;
std::string crash_file;

// Keeps the input at fault; the signal then goes its way.
void keep_input(int signal) {
  if (std::FILE* file = std::fopen(crash_file.c_str(), "wb")) {
    std::fwrite(current.data(), 1, current.size(), file);
    std::fclose(file);
  }
  std::fprintf(stderr, "the input of %zu bytes is in %s\n", current.size(), crash_file.c_str());
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void run(const Input& input) {
  current = input;
  LLVMFuzzerTestOneInput(current.data(), current.size());
}

// One to eight changes of the kinds that find faults in decoders: single bits, numbers at the
// edges, pieces cut out, doubled, moved in from another input.
Input mutated(const Input& from, const Input& other, std::mt19937_64& random) {
  Input input = from;
  const auto below = [&](std::size_t end) { return end == 0 ? 0 : random() % end; };
  for (std::uint64_t changes = 1 + below(8); changes > 0; --changes) {
    const std::size_t at = below(input.size() + 1);
    switch (random() % 7) {
      case 0:
        if (at < input.size()) input[at] ^= static_cast<std::uint8_t>(1u << below(8));
        break;
      case 1:
        if (at < input.size()) input[at] = static_cast<std::uint8_t>(random());
        break;
      case 2: {  // a number at an edge
        constexpr std::uint64_t edges[] = {0,      1,          0x7F,       0x80,       0xFF,
                                           0x7FFF, 0xFFFF,     0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
                                           ~0ULL,  1ULL << 63, ~0ULL >> 1};
        const std::uint64_t value = edges[below(std::size(edges))];
        const std::size_t width = std::size_t{1} << below(4);
        for (std::size_t i = 0; i < width && at + i < input.size(); ++i)
          input[at + i] = static_cast<std::uint8_t>(value >> (8 * i));
        break;
      }
      case 3:  // shorter
        input.resize(at);
        break;
      case 4: {  // without a piece
        const auto begin = input.begin() + static_cast<std::ptrdiff_t>(at);
        input.erase(begin, begin + static_cast<std::ptrdiff_t>(below(input.size() - at + 1)));
        break;
      }
      case 5: {  // with a piece of itself twice
        const Input piece(
            input.begin() + static_cast<std::ptrdiff_t>(at),
            input.begin() + static_cast<std::ptrdiff_t>(
                                at + below(std::min<std::size_t>(64, input.size() - at + 1))));
        input.insert(input.begin() + static_cast<std::ptrdiff_t>(below(input.size() + 1)),
                     piece.begin(), piece.end());
        break;
      }
      default: {  // with a piece of another
        const std::size_t begin = below(other.size() + 1);
        const std::size_t count = below(std::min<std::size_t>(64, other.size() - begin + 1));
        input.insert(input.begin() + static_cast<std::ptrdiff_t>(at),
                     other.begin() + static_cast<std::ptrdiff_t>(begin),
                     other.begin() + static_cast<std::ptrdiff_t>(begin + count));
      }
    }
  }
  return input;
}

void add_files(const std::filesystem::path& path, std::vector<Input>& inputs) {
  if (std::filesystem::is_directory(path)) {
    for (const auto& entry : std::filesystem::directory_iterator(path))
      add_files(entry.path(), inputs);
    return;
  }
  std::ifstream in(path, std::ios::binary);
  inputs.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t runs = 100'000, seed = 1;
  double seconds = 0;  // 0: until the runs are done
  std::vector<Input> inputs = thinwire::fuzz::seeds();
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto number = [&] {
      if (++i == argc) {
        std::cerr << word << " needs a number\n";
        std::exit(2);
      }
      return std::strtod(argv[i], nullptr);
    };
    if (word == "--runs") {
      runs = static_cast<std::uint64_t>(number());
    } else if (word == "--seconds") {
      seconds = number();
    } else if (word == "--seed") {
      seed = static_cast<std::uint64_t>(number());
    } else {
      add_files(word, inputs);
    }
  }
  crash_file = "crash-" + std::filesystem::path(argv[0]).filename().string() + ".bin";
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL})
    std::signal(signal, keep_input);

  for (const Input& input : inputs) run(input);
  std::mt19937_64 random(seed);
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  std::uint64_t done = 0;
  for (; done < runs; ++done) {
    if (seconds > 0 && done % 256 == 0 && passed() > seconds) break;
    run(mutated(inputs[random() % inputs.size()], inputs[random() % inputs.size()], random));
  }
  std::cout << inputs.size() << " inputs and " << done << " mutations of them, "
            << static_cast<std::uint64_t>(static_cast<double>(done) / std::max(passed(), 1e-9))
            << " a second, without a finding\n";
}
