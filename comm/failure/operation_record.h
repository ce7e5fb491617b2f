// The last operations of this process, kept for the day on which one of them fails.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <string>
#include <string_view>

namespace thinwire::comm {

// A ring of what this process has waited for. Costs a lock and a copy of 100 bytes an operation.
// Thread-safe.
class OperationRecord {
 public:
  static constexpr std::size_t kKept = 256;

  // That of the process.
  static OperationRecord& of_process();

  // Returns the number by which end() knows the operation.
  std::uint64_t begin(std::string_view operation, std::uint64_t sequence);
  void end(std::uint64_t number);

  // One JSON object, which `thinwire doctor --postmortem` reads:
  //   {"version": 1, "rank": 0, "size": 4, "host": "a", "time": 1.7e9,
  //    "failure": {"operation": "averaging bucket 3 #17", "text": "..."},
  //    "operations": [{"operation": "averaging bucket 3", "sequence": 17, "began": 1.7e9,
  //                    "seconds": 0.01 or null while it lasts}, ...]}
  // Times are seconds since 1970 by this host's clock; the oldest operation comes first.
  std::string json(int rank, int size, const std::string& operation, const std::string& text) const;

 private:
  struct Entry {
    std::array<char, 80> name;  // cut off where it is longer
    std::size_t length = 0;
    std::uint64_t sequence = 0;
    double began = 0, seconds = -1;
  };

  mutable std::mutex mutex_;
  std::array<Entry, kKept> entries_;
  std::uint64_t begun_ = 0;
};

// While it lives, an operation is under way.
class RecordedOperation {
 public:
  RecordedOperation(std::string_view operation, std::uint64_t sequence)
      : number_(OperationRecord::of_process().begin(operation, sequence)) {}
  // What an exception ends has not finished, and is left as it is.
  ~RecordedOperation() {
    if (std::uncaught_exceptions() == exceptions_) OperationRecord::of_process().end(number_);
  }
  RecordedOperation(const RecordedOperation&) = delete;
  RecordedOperation& operator=(const RecordedOperation&) = delete;

 private:
  std::uint64_t number_;
  int exceptions_ = std::uncaught_exceptions();
};

// Whether THINWIRE_POSTMORTEM names a folder: else nothing need be recorded.
bool leaves_postmortems();

// Writes the record as `folder`/rank-R.json where THINWIRE_POSTMORTEM names a folder; the first
// failure of a process counts, later ones follow from it. Never throws: what cannot be written is
// logged.
void leave_postmortem(int rank, int size, const std::string& operation,
                      const std::string& text) noexcept;

}  // namespace thinwire::comm
