#include "thinwire/tests/support/ptx/memory.h"

#include <algorithm>
#include <cstring>

namespace thinwire::testing::ptx {

bool WatchedBytes::unordered(const Access& access, const Actor& actor) {
  if (!access.any) return false;
  if (access.actor.block != actor.block || access.foreign) return true;
  return access.actor.epoch == actor.epoch && (access.many || access.actor.thread != actor.thread);
}

WatchedBytes::Record& WatchedBytes::record(std::size_t at) {
  std::vector<Record>& page = pages_[at / kPage];
  if (page.empty()) {
    const std::size_t first = at / kPage * kPage;
    page.resize(std::min(kPage, bytes_.size() - first));
    if (is_defined_)
      for (std::size_t i = 0; i < page.size(); ++i) page[i].defined = is_defined_(first + i);
  }
  return page[at % kPage];
}

std::string WatchedBytes::read(std::size_t at, std::size_t count, const Actor& actor,
                               std::byte* into) {
  for (std::size_t i = at; i < at + count; ++i) {
    Record& record = this->record(i);
    if (!record.defined) return "byte " + std::to_string(i) + " was never written";
    if (unordered(record.written, actor)) {
      return "byte " + std::to_string(i) + ": race with a write of block " +
             std::to_string(record.written.actor.block) + ", thread " +
             std::to_string(record.written.actor.thread);
    }
    const bool shared = unordered(record.read, actor);
    record.read = {actor, true, shared};
  }
  std::memcpy(into, bytes_.data() + at, count);
  return {};
}

std::string WatchedBytes::write(std::size_t at, std::size_t count, const Actor& actor,
                                const std::byte* from) {
  for (std::size_t i = at; i < at + count; ++i) {
    Record& record = this->record(i);
    for (const auto* access : {&record.written, &record.read}) {
      if (!unordered(*access, actor)) continue;
      return "byte " + std::to_string(i) + ": race with a " +
             (access == &record.read ? "read" : "write") + " of block " +
             std::to_string(access->actor.block) + ", thread " +
             std::to_string(access->actor.thread);
    }
    record.written = {actor, true, false};
    record.defined = true;
  }
  std::memcpy(bytes_.data() + at, from, count);
  return {};
}

std::string WatchedBytes::add(std::size_t at, std::size_t count, const Actor& actor,
                              std::uint64_t more, std::uint64_t& before) {
  for (std::size_t i = at; i < at + count; ++i) {
    Record& record = this->record(i);
    if (!record.defined) return "byte " + std::to_string(i) + " was never written";
    const Access& written = record.written;
    const bool ordered = !unordered(written, actor);
    if ((!ordered && !written.atomic) || unordered(record.read, actor)) {
      return "byte " + std::to_string(i) + ": race of an atomic operation with a plain access of " +
             "block " + std::to_string(written.actor.block);
    }
    const bool foreign =
        written.any && written.atomic && (written.foreign || written.actor.block != actor.block);
    record.written = {actor, true, !ordered, true, foreign};
  }
  std::memcpy(&before, bytes_.data() + at, count);
  const std::uint64_t after = before + more;
  std::memcpy(bytes_.data() + at, &after, count);
  return {};
}

void WatchedBytes::forget_contents() {
  is_defined_ = [](std::size_t) { return false; };
  for (std::vector<Record>& page : pages_) page.clear();
}

void GlobalMemory::add(void* data, std::size_t bytes, bool defined) {
  if (bytes == 0) return;
  auto& range = ranges_
                    .insert_or_assign(reinterpret_cast<std::uint64_t>(data),
                                      WatchedBytes({static_cast<std::byte*>(data), bytes}))
                    .first->second;
  if (!defined) range.forget_contents();
}

WatchedBytes* GlobalMemory::known(std::uint64_t address, std::size_t count, std::size_t& offset) {
  auto after = ranges_.upper_bound(address);
  if (after == ranges_.begin()) return nullptr;
  auto& [begin, range] = *std::prev(after);
  offset = address - begin;
  return offset + count <= range.size() ? &range : nullptr;
}

WatchedBytes* GlobalMemory::find(std::uint64_t address, std::size_t count, std::size_t& offset) {
  if (WatchedBytes* range = known(address, count, offset)) return range;
  if (!source_) return nullptr;
  auto found = source_(address);
  if (!found) return nullptr;
  ranges_.try_emplace(found->begin, found->bytes, std::move(found->is_defined));
  return known(address, count, offset);
}

}  // namespace thinwire::testing::ptx
