// Runs a test program's tests; with --ranks=N as N processes at once, which all have to pass.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include <c10/cuda/CUDAFunctions.h>

#include "thinwire/tests/support/fake_gpu/ranks/ranks.h"

namespace {

// A rank that failed leaves the others waiting for it.
constexpr std::chrono::seconds kGraceOfOthers{5};

// This program again, as a rank. Only rank 0 writes the results.
pid_t start_rank(int rank, int ranks, const std::string& store,
                 const std::vector<std::string>& arguments) {
  const pid_t child = fork();
  if (child != 0) return child;
  // A rank that waits for a dead one would wait for ever: it ends with whoever started it.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  setenv("FAKE_GPU_RANK", std::to_string(rank).c_str(), 1);
  setenv("FAKE_GPU_RANKS", std::to_string(ranks).c_str(), 1);
  setenv("FAKE_GPU_STORE", store.c_str(), 1);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) {
    if (rank != 0 && argument.starts_with("--gtest_output")) continue;
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  execv("/proc/self/exe", argv.data());
  std::_Exit(127);
}

// Exit status of the first rank that failed, 0 where none did.
int run_ranks(int ranks, const std::vector<std::string>& arguments) {
  std::string store = std::filesystem::temp_directory_path() / "fake_gpu_store_XXXXXX";
  const int file = mkstemp(store.data());
  if (file < 0) return EXIT_FAILURE;
  close(file);
  std::vector<pid_t> running;
  for (int rank = 0; rank < ranks; ++rank)
    running.push_back(start_rank(rank, ranks, store, arguments));
  int failure = 0;
  auto deadline = std::chrono::steady_clock::time_point::max();
  for (int left = ranks; left > 0;) {
    for (int rank = 0; rank < ranks; ++rank) {
      pid_t& pid = running[static_cast<std::size_t>(rank)];
      int status = 0;
      if (pid == 0 || waitpid(pid, &status, WNOHANG) != pid) continue;
      pid = 0;
      --left;
      if (status == 0) continue;
      std::fprintf(stderr, "rank %d ended with %s %d\n", rank,
                   WIFEXITED(status) ? "status" : "signal",
                   WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
      if (failure == 0) deadline = std::chrono::steady_clock::now() + kGraceOfOthers;
      failure = EXIT_FAILURE;
    }
    if (std::chrono::steady_clock::now() > deadline) {
      for (const pid_t pid : running)
        if (pid != 0) kill(pid, SIGKILL);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  unlink(store.c_str());
  return failure;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> arguments;
  int ranks = 0;
  for (int i = 0; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.starts_with("--ranks="))
      ranks = std::atoi(argument.c_str() + 8);
    else
      arguments.push_back(argument);
  }
  if (ranks > 0) return run_ranks(ranks, arguments);
  testing::InitGoogleTest(&argc, argv);
  const auto& own = thinwire::testing::GpuRanks::get();
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(own.rank));
  const int result = RUN_ALL_TESTS();
  // Streams of the device run until the process ends, so nothing may be taken down before.
  std::fflush(nullptr);
  std::_Exit(result);
}
