#include "thinwire/tests/support/fake_gpu/detector.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "thinwire/common/text.h"
#include "thinwire/tests/support/fake_gpu/names.h"

namespace thinwire::fake_gpu {
namespace {

using TaskPtr = std::shared_ptr<const Task>;

std::uintptr_t number(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

class Findings {
 public:
  // `key` is the text without what differs from byte to byte.
  void add(const std::string& key, const std::string& text) {
    // For programs that do not ask.
    static const bool tells = std::getenv("FAKE_GPU_TELL") != nullptr;
    const std::lock_guard lock(mutex_);
    if (!told_.insert(key).second) return;
    list_.push_back(text);
    if (tells) std::fprintf(stderr, "fake GPU: %s\n", text.c_str());
  }

  std::vector<std::string> take() {
    const std::lock_guard lock(mutex_);
    told_.clear();
    return std::exchange(list_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> list_;
  std::set<std::string> told_;
};

Findings& all_findings() {
  static auto* all = new Findings;
  return *all;
}

// About the byte at an address, once for all bytes of one name.
void tell(const std::string& before, const Access& access, std::uintptr_t at,
          const std::string& after) {
  const std::string place = place_in(access.name, at);
  all_findings().add(before + access.name.text + after, before + access.name.text + place + after);
}

// Bytes that were always accessed together.
struct Segment {
  std::uintptr_t end = 0;
  Contents contents = Contents::kWritten;
  TaskPtr write = nullptr;          // the last one
  std::vector<TaskPtr> reads = {};  // since then, the last one of each stream
};

class Detector {
 public:
  void note(const TaskPtr& task, const Access& access) {
    for_each_segment(access, [&](std::uintptr_t at, Segment& segment) {
      check_contents(*task, access, at, segment.contents);
      mark(task, access, at, segment);
      if (access.write && segment.contents == Contents::kUnwritten)
        segment.contents = Contents::kWritten;
    });
  }

  void give(const TaskPtr& task, const Access& access, Contents contents) {
    if (access.bytes == 0) return;
    for_each_segment(access, [&](std::uintptr_t at, Segment& segment) {
      mark(task, access, at, segment);
      segment.contents = contents;
    });
    // They are all equal now, and one for the next user.
    const auto first = memory_.find(number(access.begin));
    first->second.end = number(access.begin) + access.bytes;
    memory_.erase(std::next(first), memory_.lower_bound(first->second.end));
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

  template <typename Visit>
  void for_each_segment(const Access& access, const Visit& visit) {
    const std::uintptr_t begin = number(access.begin), end = begin + access.bytes;
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

  static void check_contents(const Task& task, const Access& access, std::uintptr_t at,
                             Contents contents) {
    if (contents == Contents::kWritten) return;
    const std::string who = concat("'", task.what, "' on ", describe_stream(task.stream),
                                   access.write ? " writes " : " reads ");
    if (contents == Contents::kFreed) {
      tell(concat("use after free: ", who), access, at, "");
    } else if (contents == Contents::kNobodys) {
      tell(concat("out of bounds: ", who, "past the end of "), access, at, "");
    } else if (contents == Contents::kUnwritten && !access.write) {
      tell(concat("never written: ", who), access, at, " before anything wrote it");
    }
  }

  static void check_order(const Task& before, bool before_writes, const Task& task,
                          const Access& access, std::uintptr_t at) {
    if (ordered(before, task)) return;
    tell("race on ", access, at,
         concat(": '", before.what, "' on ", describe_stream(before.stream),
                before_writes ? " writes" : " reads", " and '", task.what, "' on ",
                describe_stream(task.stream), access.write ? " writes" : " reads",
                ", and nothing orders them"));
  }

  static void mark(const TaskPtr& task, const Access& access, std::uintptr_t at, Segment& segment) {
    if (segment.write != nullptr) check_order(*segment.write, true, *task, access, at);
    if (access.write) {
      for (const TaskPtr& read : segment.reads) check_order(*read, false, *task, access, at);
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

}  // namespace

void note(const TaskPtr& task, const Access& access) {
  const std::lock_guard lock(detector_mutex());
  detector().note(task, access);
}

void note_contents(const TaskPtr& task, const Access& access, Contents contents) {
  const std::lock_guard lock(detector_mutex());
  detector().give(task, access, contents);
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
  all_findings().add(text, text);
}

std::vector<std::string> take_findings() {
  return all_findings().take();
}

}  // namespace thinwire::fake_gpu
