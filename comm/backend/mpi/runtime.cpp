#include "thinwire/comm/backend/mpi/runtime.h"

// Without these mpi.h brings MPI's withdrawn C++ classes along.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <future>
#include <list>
#include <mutex>
#include <thread>

#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/comm/backend/mpi/start.h"
#include "thinwire/comm/backend/mpi/transfer.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/common/thread_apart.h"

namespace thinwire::comm::mpi {

class Communicator {
 public:
  explicit Communicator(MPI_Comm handle) : handle_(handle) {
    MPI_Comm_set_errhandler(handle_, MPI_ERRORS_RETURN);
    int found = 0;
    int* bound = nullptr;
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &bound, &found);
    largest_tag_ = found != 0 ? *bound : 32767;
  }
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  MPI_Comm handle() const { return handle_; }
  int number() const { return MPI_Comm_c2f(handle_); }
  int largest_tag() const { return largest_tag_; }
  bool broken() const { return broken_; }
  // Progress thread only.
  const std::string& why_broken() const { return why_broken_; }
  void mark_broken(const std::string& why) {
    if (broken_) return;
    why_broken_ = why;
    broken_ = true;
  }

 private:
  MPI_Comm handle_;
  int largest_tag_ = 0;
  std::atomic<bool> broken_ = false;
  std::string why_broken_;
};

namespace {

// How long a program waits at its end for the other ranks to end MPI with it.
constexpr auto kFinalizePatience = std::chrono::seconds(30);
// The same after a failure, when some of them may be gone.
constexpr auto kBrokenPatience = std::chrono::seconds(3);
// See Note [One MPI thread].
constexpr auto kSpin = std::chrono::microseconds(20);
constexpr int kNapsPerWait = 16;
constexpr auto kShortestNap = std::chrono::microseconds(20);
constexpr auto kLongestNap = std::chrono::microseconds(200);
// While nothing is pending; see Note [Finished is not sent].
constexpr auto kLongestIdleNap = std::chrono::milliseconds(10);
// An operation that waits for longer looks whether its peer is doing something else altogether.
constexpr auto kSuspicion = std::chrono::milliseconds(250);

// An operation that was started, or the remains of one that failed.
struct Active {
  std::shared_ptr<Communicator> communicator;
  std::unique_ptr<Operation> operation;
  std::size_t stage = 0;
  Transfer transfer = {};
  Clock::time_point deadline = {}, next_suspicion = {};
};

class Runtime {
 public:
  // Never destroyed: the progress thread may outlive every other object of the process.
  static Runtime& get() {
    static auto* runtime = new Runtime;
    return *runtime;
  }

  // Runs `call` on the progress thread and returns its result or throws its exception.
  template <typename Call>
  auto run(Call call) {
    // Shared: the progress thread is still inside the task when the caller wakes up.
    const auto task = std::make_shared<std::packaged_task<decltype(call())()>>(std::move(call));
    auto result = task->get_future();
    post([task] { (*task)(); });
    return result.get();
  }

  void post(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
  }

  bool is_progress_thread() const { return std::this_thread::get_id() == thread_id_; }

  // The rest is for the progress thread.
  World start_mpi();
  void start(const std::shared_ptr<Communicator>& communicator,
             std::unique_ptr<Operation> operation);
  void start_duplicate(MPI_Comm parent, std::chrono::milliseconds timeout,
                       std::shared_ptr<std::promise<std::shared_ptr<Communicator>>> result);
  void break_communicator(Communicator& communicator, const std::string& why);
  // From any thread: the end will not be waited for as after a success.
  void expect_no_end() { something_broke_ = true; }

 private:
  Runtime() {
    prepare_mpi_backend();
    // Shared, as the task of run().
    const auto started = std::make_shared<std::promise<std::thread::id>>();
    std::thread([this, started] {
      // The default slack of 50 us would stretch the shortest naps many times.
      prctl(PR_SET_TIMERSLACK, 1);
      started->set_value(std::this_thread::get_id());
      loop();
    }).detach();
    thread_id_ = started->get_future().get();
    std::atexit([] { Runtime::get().stop(); });
  }

  void loop();
  void stop();
  void nap(std::unique_lock<std::mutex>& lock, Clock::duration longest);
  void serve_peers() const;
  bool test(Active& active);
  void post_stage(Active& active);
  void fail(Active& active, std::exception_ptr cause);
  void park(Active&& active);

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  std::thread::id thread_id_;

  // Of the progress thread alone.
  std::list<Active> active_;
  std::list<Active> parked_;  // failed, but MPI still refers to their bytes
  struct Duplicate {
    MPI_Request request;
    std::unique_ptr<MPI_Comm> handle;
    Clock::time_point deadline;
    std::shared_ptr<std::promise<std::shared_ptr<Communicator>>> result;
  };
  std::list<Duplicate> duplicates_;
  bool test_duplicate(Duplicate& duplicate);
  bool started_ = false;
  bool ours_ = false;  // this runtime started MPI, so it ends it
  std::atomic<bool> something_broke_ = false;
  World world_{};
  Clock::time_point last_event_ = Clock::now();
};

World Runtime::start_mpi() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  check(finalized == 0, "the program has already called MPI_Finalize, the backend mpi needs it");
  if (started_) return world_;
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized == 0) {
    // More than this thread needs: the program may want to use MPI itself.
    int provided = 0;
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
    ours_ = true;
  } else {
    int provided = 0;
    MPI_Query_thread(&provided);
    // With less, the program's own calls of MPI would have to keep out of the progress thread's
    // way, and there is no lock to share.
    check(provided == MPI_THREAD_MULTIPLE, "the program initialised MPI with ",
          provided == MPI_THREAD_SERIALIZED ? "MPI_THREAD_SERIALIZED" : "less support for threads",
          "; the backend mpi needs MPI_Init_thread with MPI_THREAD_MULTIPLE");
  }
  MPI_Comm_rank(MPI_COMM_WORLD, &world_.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world_.size);
  started_ = true;
  return world_;
}

void Runtime::start(const std::shared_ptr<Communicator>& communicator,
                    std::unique_ptr<Operation> operation) {
  Active active;
  active.communicator = communicator;
  active.operation = std::move(operation);
  const auto now = Clock::now();
  active.deadline = now + active.operation->timeout;
  active.next_suspicion = now + kSuspicion;
  last_event_ = now;
  int finalized = 0;
  MPI_Finalized(&finalized);
  try {
    if (communicator->broken())
      throw CommError(-1, active.operation->name, active.operation->sequence,
                      concat("this backend broke earlier: ", communicator->why_broken()));
    if (finalized != 0)
      throw CommError(-1, active.operation->name, active.operation->sequence,
                      "the program has called MPI_Finalize");
    post_stage(active);
    active_.push_back(std::move(active));
  } catch (...) {
    fail(active, std::current_exception());
    park(std::move(active));
  }
}

void Runtime::post_stage(Active& active) {
  const Operation& operation = *active.operation;
  if (active.stage < operation.stages.size())
    active.transfer.post(operation, operation.stages[active.stage].messages,
                         active.communicator->number());
}

// Returns whether the operation is over.
bool Runtime::test(Active& active) {
  try {
    while (active.transfer.done()) {
      const auto& stages = active.operation->stages;
      if (active.stage == stages.size()) {
        active.operation->succeeded(active.transfer.source());
        return true;
      }
      if (stages[active.stage].then) stages[active.stage].then();
      ++active.stage;
      post_stage(active);
    }
    const bool moved = active.transfer.test(*active.operation);
    const auto now = Clock::now();
    if (moved) last_event_ = now;
    if (moved && active.transfer.done()) return test(active);
    if (now >= active.next_suspicion) {
      active.transfer.look_for_contradiction(*active.operation, active.communicator->number());
      active.next_suspicion = now + kSuspicion;
    }
    if (now >= active.deadline) {
      int first = -1;
      const std::string missing = active.transfer.missing_peers(first);
      throw CommError(
          first, active.operation->name, active.operation->sequence,
          concat(missing, " within the timeout of ", active.operation->timeout.count(), " ms"));
    }
    return false;
  } catch (...) {
    fail(active, std::current_exception());
    return true;
  }
}

void Runtime::fail(Active& active, std::exception_ptr cause) {
  last_event_ = Clock::now();
  std::string why = "unknown";
  try {
    std::rethrow_exception(cause);
  } catch (const std::exception& error) {
    why = error.what();
  } catch (...) {
  }
  break_communicator(*active.communicator, why);
  auto failed = std::move(active.operation->failed);
  active.operation->failed = nullptr;
  if (failed) failed(std::move(cause));
}

void Runtime::break_communicator(Communicator& communicator, const std::string& why) {
  if (communicator.broken()) return;
  something_broke_ = true;
  communicator.mark_broken(why);
  // The others are failed by the loop, which owns the list that may be under iteration here.
}

void Runtime::park(Active&& active) {
  if (active.transfer.done()) return;
  active.transfer.take_back();
  active.operation->stages.clear();
  parked_.push_back(std::move(active));
}

void Runtime::start_duplicate(MPI_Comm parent, std::chrono::milliseconds timeout,
                              std::shared_ptr<std::promise<std::shared_ptr<Communicator>>> result) {
  try {
    duplicates_.push_back({MPI_REQUEST_NULL, std::make_unique<MPI_Comm>(MPI_COMM_NULL),
                           Clock::now() + timeout, result});
    check_mpi(MPI_Comm_idup(parent, duplicates_.back().handle.get(), &duplicates_.back().request),
              "MPI_Comm_idup");
    last_event_ = Clock::now();
  } catch (...) {
    duplicates_.pop_back();
    result->set_exception(std::current_exception());
  }
}

bool Runtime::test_duplicate(Duplicate& duplicate) {
  try {
    int done = 0;
    check_mpi(MPI_Test(&duplicate.request, &done, MPI_STATUS_IGNORE), "MPI_Comm_idup");
    if (done != 0) {
      duplicate.result->set_value(std::make_shared<Communicator>(*duplicate.handle));
      return true;
    }
    if (Clock::now() < duplicate.deadline) return false;
    something_broke_ = true;
    // MPI still writes the handle when the others come.
    static_cast<void>(duplicate.handle.release());  // NOLINT(bugprone-unused-return-value)
    throw CommError(-1, "MPI_Comm_idup", 0, "not all ranks made the backend within the timeout");
  } catch (...) {
    duplicate.result->set_exception(std::current_exception());
    return true;
  }
}

void Runtime::nap(std::unique_lock<std::mutex>& lock, Clock::duration longest) {
  const auto quiet = Clock::now() - last_event_;
  if (quiet < kSpin) return;
  const auto length = std::clamp<Clock::duration>(quiet / kNapsPerWait, kShortestNap, longest);
  wake_.wait_for(lock, length, [this] { return !tasks_.empty(); });
}

void Runtime::serve_peers() const {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0) return;
  int found = 0;
  MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_SELF, &found, MPI_STATUS_IGNORE);
}

void Runtime::loop() {
  while (true) {
    std::deque<std::function<void()>> tasks;
    {
      std::unique_lock lock(mutex_);
      const bool idle = active_.empty() && duplicates_.empty();
      if (!started_)
        wake_.wait(lock, [this] { return !tasks_.empty(); });
      else if (tasks_.empty())
        nap(lock, idle ? kLongestIdleNap : kLongestNap);
      tasks.swap(tasks_);
    }
    for (auto& task : tasks) task();
    if (started_ && active_.empty() && duplicates_.empty()) serve_peers();
    std::erase_if(duplicates_, [this](Duplicate& duplicate) { return test_duplicate(duplicate); });
    for (auto it = active_.begin(); it != active_.end();) {
      bool over = false;
      if (it->communicator->broken()) {
        fail(*it, std::make_exception_ptr(
                      CommError(-1, it->operation->name, it->operation->sequence,
                                concat("this backend broke: ", it->communicator->why_broken()))));
        over = true;
      } else {
        over = test(*it);
      }
      if (!over) {
        ++it;
        continue;
      }
      park(std::move(*it));
      it = active_.erase(it);
    }
    std::erase_if(parked_, [](Active& active) { return active.transfer.abandoned(); });
  }
}

void Runtime::stop() {
  const auto ended = std::make_shared<std::promise<void>>();
  auto done = ended->get_future();
  post([this, ended] {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (ours_ && finalized == 0) MPI_Finalize();
    // Nothing of MPI may be called any more.
    active_.clear();
    parked_.clear();
    duplicates_.clear();
    ended->set_value();
  });
  const std::chrono::seconds patience = something_broke_ ? kBrokenPatience : kFinalizePatience;
  if (done.wait_for(patience) != std::future_status::ready)
    log::warn("the other ranks did not end MPI within ", patience.count(), " s");
}

}  // namespace

Communicator::~Communicator() {
  // After a failure messages of peers may still arrive; such a communicator is not given back.
  if (broken_) return;
  Runtime::get().post([handle = handle_]() mutable {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0) MPI_Comm_free(&handle);
  });
}

void submit(const std::shared_ptr<Communicator>& communicator,
            std::unique_ptr<Operation> operation) {
  // std::function wants a callable that can be copied.
  auto shared = std::make_shared<std::unique_ptr<Operation>>(std::move(operation));
  Runtime::get().post(
      [communicator, shared] { Runtime::get().start(communicator, std::move(*shared)); });
}

void abort(const std::shared_ptr<Communicator>& communicator, const std::string& reason) {
  Runtime::get().post(
      [communicator, reason] { Runtime::get().break_communicator(*communicator, reason); });
}

bool is_broken(const Communicator& communicator) {
  return communicator.broken();
}

std::shared_ptr<Communicator> duplicate(const std::shared_ptr<Communicator>& parent,
                                        std::chrono::milliseconds timeout) {
  auto result = std::make_shared<std::promise<std::shared_ptr<Communicator>>>();
  auto future = result->get_future();
  Runtime::get().run([&] { Runtime::get().start_mpi(); });
  Runtime::get().post([parent, timeout, result] {
    Runtime::get().start_duplicate(parent == nullptr ? MPI_COMM_WORLD : parent->handle(), timeout,
                                   result);
  });
  return future.get();
}

std::shared_ptr<Communicator> subset(const std::shared_ptr<Communicator>& parent,
                                     const std::vector<int>& ranks,
                                     std::chrono::milliseconds timeout) {
  Runtime::get().run([] { Runtime::get().start_mpi(); });
  auto made = on_a_thread_apart([parent, ranks] {
    return std::make_shared<Communicator>(MPI_Comm_f2c(
        create_group(parent == nullptr ? MPI_Comm_c2f(MPI_COMM_WORLD) : parent->number(), ranks)));
  });
  if (made.wait_for(timeout) != std::future_status::ready) {
    Runtime::get().expect_no_end();
    throw CommError(-1, "MPI_Comm_create_group", 0,
                    "not all ranks made the group within the timeout");
  }
  return made.get();
}

int largest_tag(const Communicator& communicator) {
  return communicator.largest_tag();
}

World world() {
  return Runtime::get().run([] { return Runtime::get().start_mpi(); });
}

bool on_progress_thread() {
  return Runtime::get().is_progress_thread();
}

}  // namespace thinwire::comm::mpi
