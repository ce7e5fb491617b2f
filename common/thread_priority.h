// Threads whose work is not to delay that of others.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

namespace thinwire {

// From now on the calling thread gets processors, and disks whose scheduler looks at it, when
// threads of ordinary priority leave them: on Linux a nice value is a thread's own. Cannot be taken
// back without privileges, so it is for threads that end with their work. Where the system refuses,
// the thread goes on as it was.
inline void give_way_to_other_threads() noexcept {
  constexpr int kNicest = 19;
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNicest);
}

}  // namespace thinwire
