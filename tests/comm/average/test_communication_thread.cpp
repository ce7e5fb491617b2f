#include "thinwire/comm/average/communication_thread.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <future>
#include <stdexcept>
#include <string>

#include "thinwire/tests/support/error_of.h"

namespace thinwire::comm {
namespace {

using testing::error_of;
using ::testing::HasSubstr;

// Runs `job` on the thread and returns what it ended with.
std::string outcome_of(CommunicationThread& thread, const std::function<void()>& job) {
  std::promise<std::string> outcome;
  thread.submit(job, [&](const std::exception_ptr& failure) {
    try {
      if (failure) std::rethrow_exception(failure);
      outcome.set_value("done");
    } catch (const std::exception& error) {
      outcome.set_value(error.what());
    }
  });
  return outcome.get_future().get();
}

int cpus_of_this_thread(cpu_set_t& set) {
  CPU_ZERO(&set);
  pthread_getaffinity_np(pthread_self(), sizeof set, &set);
  return CPU_COUNT(&set);
}

TEST(CommunicationThread, RefusesWhatComesAfterAFailure) {
  CommunicationThread thread;
  EXPECT_EQ(outcome_of(thread, [] {}), "done");
  EXPECT_EQ(outcome_of(thread, [] { throw std::runtime_error("first"); }), "first");
  bool ran = false;
  EXPECT_EQ(outcome_of(thread, [&] { ran = true; }), "first");
  EXPECT_FALSE(ran);
}

// A call is the caller's own matter: what it throws is handed over, and the thread goes on.
TEST(CommunicationThread, GoesOnAfterACallThatThrows) {
  CommunicationThread thread;
  EXPECT_THROW(thread.call([] { throw std::bad_alloc(); }), std::bad_alloc);
  EXPECT_EQ(outcome_of(thread, [] {}), "done");
  bool ran = false;
  thread.call([&] { ran = true; });
  EXPECT_TRUE(ran);
  EXPECT_EQ(outcome_of(thread, [] { throw std::runtime_error("first"); }), "first");
  EXPECT_THROW(thread.call([] {}), std::runtime_error);
}

TEST(CommunicationThread, HasThreadsAndCpusOfItsOwn) {
  cpu_set_t mine;
  const int cpus_before = cpus_of_this_thread(mine);
  int cpu = 0;
  while (!CPU_ISSET(cpu, &mine)) ++cpu;
  const int usual = at::get_num_threads();
  CommunicationThread thread({.threads = usual + 3, .cpus = {cpu}});
  int threads = 0;
  cpu_set_t its;
  int cpus = 0;
  EXPECT_EQ(outcome_of(thread,
                       [&] {
                         threads = at::get_num_threads();
                         cpus = cpus_of_this_thread(its);
                       }),
            "done");
  EXPECT_EQ(threads, usual + 3);
  EXPECT_EQ(cpus, 1);
  EXPECT_TRUE(CPU_ISSET(cpu, &its));
  // This thread, and those to come, are as before.
  EXPECT_EQ(at::get_num_threads(), usual);
  std::thread([&] { threads = at::get_num_threads(); }).join();
  EXPECT_EQ(threads, usual);
  EXPECT_EQ(cpus_of_this_thread(mine), cpus_before);
}

TEST(CommunicationThread, RefusesThreadsAndCpusThatAreNotThere) {
  EXPECT_THAT(error_of([] { CommunicationThread thread({.threads = -1}); }), HasSubstr("-1"));
  EXPECT_THAT(error_of([] { CommunicationThread thread({.cpus = {-2}}); }), HasSubstr("no CPU -2"));
  EXPECT_THAT(error_of([] { CommunicationThread thread({.cpus = {CPU_SETSIZE - 1}}); }),
              HasSubstr(std::to_string(CPU_SETSIZE - 1)));
}

}  // namespace
}  // namespace thinwire::comm
