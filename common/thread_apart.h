// Calls that may never return.
#pragma once

#include <future>
#include <thread>
#include <utility>

namespace thinwire {

// Runs `action` on a thread that nobody waits for, and whose result, or exception, the future
// gives. For who gives up waiting after a while: the future of std::async would wait in its
// destructor. `action` must own what it uses.
template <typename Action>
auto on_a_thread_apart(Action action) {
  std::packaged_task<decltype(action())()> task(std::move(action));
  auto result = task.get_future();
  std::thread(std::move(task)).detach();
  return result;
}

}  // namespace thinwire
