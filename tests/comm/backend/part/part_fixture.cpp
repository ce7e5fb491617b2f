// A part for test_part.cpp, with tables of this version and of another.
#include "thinwire/comm/backend/part/part.h"

namespace {

struct Table {
  const char* version;
  int answer;
};
constexpr Table kTable = {thinwire::comm::kPartVersion, 42};
constexpr Table kOlder = {"0.0.1 for torch 1.0.0", 0};

}  // namespace

extern "C" const void* fixture_functions() {
  return &kTable;
}
extern "C" const void* older_functions() {
  return &kOlder;
}
