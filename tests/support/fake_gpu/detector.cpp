#include "thinwire/tests/support/fake_gpu/detector.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "thinwire/common/text.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/memory.h"
#include "thinwire/tests/support/fake_gpu/names.h"

namespace thinwire::fake_gpu {
namespace {

using TaskPtr = std::shared_ptr<const Task>;

// Bytes that were always accessed together.
struct Segment {
  std::uintptr_t end = 0;
  Contents contents = Contents::kWritten;
  TaskPtr write = nullptr;          // the last one
  std::vector<TaskPtr> reads = {};  // since then, the last one of each stream
};

class Detector {
 public:
  void access(const TaskPtr& task, std::uintptr_t begin, std::uintptr_t end, bool write) {
    for_each_segment(begin, end, [&](std::uintptr_t at, Segment& segment) {
      check_contents(*task, at, segment, write);
      mark(task, at, segment, write);
      if (write && segment.contents == Contents::kUnwritten) segment.contents = Contents::kWritten;
    });
  }

  void give(const TaskPtr& task, std::uintptr_t begin, std::uintptr_t end, Contents contents) {
    if (begin >= end) return;
    for_each_segment(begin, end, [&](std::uintptr_t at, Segment& segment) {
      mark(task, at, segment, /*write=*/true);
      segment.contents = contents;
    });
    merge(begin, end);
  }

  void forget(std::uintptr_t begin, std::uintptr_t end, Contents contents) {
    if (begin >= end) return;
    split(begin);
    split(end);
    memory_.erase(memory_.lower_bound(begin), memory_.lower_bound(end));
    if (contents != Contents::kWritten) memory_[begin] = {end, contents};
  }

  bool is_written(std::uintptr_t address) const {
    auto after = memory_.upper_bound(address);
    if (after == memory_.begin()) return true;
    const Segment& segment = std::prev(after)->second;
    return address >= segment.end || segment.contents == Contents::kWritten;
  }

 private:
  void split(std::uintptr_t at) {
    auto after = memory_.upper_bound(at);
    if (after == memory_.begin()) return;
    auto& [begin, segment] = *std::prev(after);
    if (begin == at || segment.end <= at) return;
    Segment rest = segment;
    segment.end = at;
    memory_.emplace(at, std::move(rest));
  }

  // One segment in place of all of a range, which give() has made equal.
  void merge(std::uintptr_t begin, std::uintptr_t end) {
    const auto first = memory_.find(begin);
    first->second.end = end;
    memory_.erase(std::next(first), memory_.lower_bound(end));
  }

  template <typename Visit>
  void for_each_segment(std::uintptr_t begin, std::uintptr_t end, const Visit& visit) {
    if (begin >= end) return;
    split(begin);
    split(end);
    auto next = memory_.lower_bound(begin);
    for (std::uintptr_t at = begin; at < end;) {
      if (next == memory_.end() || next->first > at) {
        const std::uintptr_t stop = next == memory_.end() ? end : std::min(end, next->first);
        next = memory_.emplace_hint(next, at, Segment{stop});
      }
      visit(at, next->second);
      at = next->second.end;
      ++next;
    }
  }

  static void check_contents(const Task& task, std::uintptr_t at, const Segment& segment,
                             bool write) {
    const auto* address = reinterpret_cast<const void*>(at);
    const std::string who = concat("'", task.what, "' on ", describe_stream(task.stream));
    const char* does = write ? " writes " : " reads ";
    if (segment.contents == Contents::kFreed) {
      add_finding(concat("use after free: ", who, does), address, "");
    } else if (segment.contents == Contents::kNobodys) {
      add_finding(concat("out of bounds: ", who, does, "past the end of "), address, "");
    } else if (segment.contents == Contents::kUnwritten && !write) {
      add_finding(concat("never written: ", who, does), address, " before anything wrote it");
    }
  }

  static void check_order(const Task& before, bool before_writes, const Task& task, bool writes,
                          std::uintptr_t at) {
    if (ordered(before, task)) return;
    add_finding("race on ", reinterpret_cast<const void*>(at),
                concat(": '", before.what, "' on ", describe_stream(before.stream),
                       before_writes ? " writes" : " reads", " and '", task.what, "' on ",
                       describe_stream(task.stream), writes ? " writes" : " reads",
                       ", and nothing orders them"));
  }

  static void mark(const TaskPtr& task, std::uintptr_t at, Segment& segment, bool write) {
    if (segment.write != nullptr) check_order(*segment.write, true, *task, write, at);
    if (write) {
      for (const TaskPtr& read : segment.reads) check_order(*read, false, *task, true, at);
      segment.reads.clear();
      segment.write = task;
    } else {
      std::erase_if(segment.reads,
                    [&](const TaskPtr& read) { return read->stream == task->stream; });
      segment.reads.push_back(task);
    }
  }

  std::map<std::uintptr_t, Segment> memory_;  // by first address
};

std::mutex& detector_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

Detector& detector() {
  static auto* one = new Detector;
  return *one;
}

struct Findings {
  std::mutex mutex;
  std::vector<std::string> list;
  std::set<std::string> told;

  // FAKE_GPU_TELL is for programs that do not ask: what they find goes to stderr as well.
  void keep(const std::string& text) {
    list.push_back(text);
    static const bool tells = std::getenv("FAKE_GPU_TELL") != nullptr;
    if (tells) std::fprintf(stderr, "fake GPU: %s\n", text.c_str());
  }
};

Findings& all_findings() {
  static auto* all = new Findings;
  return *all;
}

std::uintptr_t number(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

}  // namespace

void note(const TaskPtr& task, const Access& access) {
  const std::lock_guard lock(detector_mutex());
  detector().access(task, number(access.begin), number(access.begin) + access.bytes, access.write);
}

void note_contents(const TaskPtr& task, const void* begin, std::size_t bytes, Contents contents) {
  const std::lock_guard lock(detector_mutex());
  detector().give(task, number(begin), number(begin) + bytes, contents);
}

bool is_written(std::uintptr_t address) {
  const std::lock_guard lock(detector_mutex());
  return detector().is_written(address);
}

void forget(const void* begin, std::size_t bytes, Contents contents) {
  const std::lock_guard lock(detector_mutex());
  detector().forget(number(begin), number(begin) + bytes, contents);
}

void add_finding(const std::string& text) {
  Findings& all = all_findings();
  const std::lock_guard lock(all.mutex);
  if (all.told.insert(text).second) all.keep(text);
}

void add_finding(const std::string& before, const void* address, const std::string& after) {
  const auto [name, place] = words_for_memory(address);
  Findings& all = all_findings();
  const std::lock_guard lock(all.mutex);
  if (all.told.insert(before + name + after).second) all.keep(before + name + place + after);
}

std::vector<std::string> take_findings() {
  Findings& all = all_findings();
  const std::lock_guard lock(all.mutex);
  all.told.clear();
  return std::exchange(all.list, {});
}

}  // namespace thinwire::fake_gpu
