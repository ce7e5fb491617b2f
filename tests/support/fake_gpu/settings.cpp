#include "thinwire/tests/support/fake_gpu/settings.h"

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <random>
#include <string_view>

namespace thinwire::fake_gpu {
namespace {

// Longer than the host takes to queue a small step, so that nothing is done by chance.
constexpr std::chrono::milliseconds kLate{15};

int number_from_environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

Schedule first_schedule() {
  const char* text = std::getenv("FAKE_GPU_SCHEDULE");
  for (const Schedule one : kSchedules)
    if (text != nullptr && std::string_view(text) == name_of(one)) return one;
  return Schedule::kRandom;
}

std::atomic<Schedule>& current_schedule() {
  static std::atomic<Schedule> schedule = first_schedule();
  return schedule;
}

}  // namespace

const char* name_of(Schedule schedule) {
  constexpr const char* names[] = {"eager", "lazy", "random", "main_late", "side_late"};
  return names[static_cast<std::size_t>(schedule)];
}

int device_count() {
  static const int count = number_from_environment("FAKE_GPU_DEVICES", 4);
  return count;
}

Schedule schedule() {
  return current_schedule();
}

void set_schedule(Schedule schedule) {
  current_schedule() = schedule;
}

std::chrono::microseconds delay(bool is_default_stream) {
  using std::chrono::microseconds;
  switch (schedule()) {
    case Schedule::kEager:
      return microseconds(0);
    case Schedule::kLazy:
      return kLate;
    case Schedule::kMainLate:
      return is_default_stream ? kLate : microseconds(0);
    case Schedule::kSideLate:
      return is_default_stream ? microseconds(0) : kLate;
    case Schedule::kRandom:
      break;
  }
  static std::mutex mutex;
  static std::mt19937 generator(
      static_cast<std::uint32_t>(number_from_environment("FAKE_GPU_SEED", 1)));
  const std::lock_guard lock(mutex);
  return generator() % 2 == 0 ? microseconds(0) : microseconds(generator() % 3000);
}

}  // namespace thinwire::fake_gpu
