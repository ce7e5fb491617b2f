#include "thinwire/comm/failure/operation_record.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <nlohmann/json.hpp>

#include "thinwire/common/atomic_file.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire::comm {
namespace {

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string name_of_host() {
  std::array<char, 256> name = {};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "";
}

}  // namespace

OperationRecord& OperationRecord::of_process() {
  static OperationRecord record;
  return record;
}

std::uint64_t OperationRecord::begin(std::string_view operation, std::uint64_t sequence) {
  const double now = seconds_since_1970();
  const std::lock_guard lock(mutex_);
  Entry& entry = entries_[begun_ % kKept];
  entry.length = std::min(operation.size(), entry.name.size());
  std::copy_n(operation.begin(), entry.length, entry.name.begin());
  entry.sequence = sequence;
  entry.began = now;
  entry.seconds = -1;
  return begun_++;
}

void OperationRecord::end(std::uint64_t number) {
  const double now = seconds_since_1970();
  const std::lock_guard lock(mutex_);
  if (begun_ - number > kKept) return;  // others have taken its place
  Entry& entry = entries_[number % kKept];
  entry.seconds = std::max(0.0, now - entry.began);
}

std::string OperationRecord::json(int rank, int size, const std::string& operation,
                                  const std::string& text) const {
  nlohmann::ordered_json record = {{"version", 1},
                                   {"rank", rank},
                                   {"size", size},
                                   {"host", name_of_host()},
                                   {"time", seconds_since_1970()},
                                   {"failure", {{"operation", operation}, {"text", text}}},
                                   {"operations", nlohmann::ordered_json::array()}};
  const std::lock_guard lock(mutex_);
  for (std::uint64_t i = begun_ > kKept ? begun_ - kKept : 0; i < begun_; ++i) {
    const Entry& entry = entries_[i % kKept];
    nlohmann::ordered_json one = {{"operation", std::string(entry.name.data(), entry.length)},
                                  {"sequence", entry.sequence},
                                  {"began", entry.began},
                                  {"seconds", nullptr}};
    if (entry.seconds >= 0) one["seconds"] = entry.seconds;
    record["operations"].push_back(std::move(one));
  }
  return record.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

bool leaves_postmortems() {
  return !Env::get().postmortem.empty();
}

void leave_postmortem(int rank, int size, const std::string& operation,
                      const std::string& text) noexcept {
  static std::atomic<bool> has_left = false;
  try {
    const std::string& folder = Env::get().postmortem;
    if (folder.empty() || has_left.exchange(true)) return;
    std::filesystem::create_directories(folder);
    AtomicFile file(std::filesystem::path(folder) / concat("rank-", rank, ".json"),
                    /*overwrite=*/true);
    file.write(OperationRecord::of_process().json(rank, size, operation, text));
    file.commit();
  } catch (const std::exception& error) {
    log::error("THINWIRE_POSTMORTEM: ", error.what());
  }
}

}  // namespace thinwire::comm
