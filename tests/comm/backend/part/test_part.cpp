#include "thinwire/comm/backend/part/part.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string error_of(const Part::Name& name) {
  Part part(name);
  try {
    part.table();
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(part.find("fixture_functions"), nullptr);
    return error.what();
  }
  return "";
}

Part::Name fixture(const char* function) {
  return {"tests", THINWIRE_PART_FIXTURE, function, "build it", "install what it needs"};
}

TEST(Part, GivesItsTableAndItsFunctions) {
  Part part(fixture("fixture_functions"));
  struct Table {
    const char* version;
    int answer;
  };
  const void* const table = part.table();
  EXPECT_EQ(static_cast<const Table*>(table)->answer, 42);
  EXPECT_EQ(part.table(), table);
  EXPECT_NE(part.find("older_functions"), nullptr);
  EXPECT_EQ(part.find("no_such_function"), nullptr);
}

TEST(Part, OfAnotherVersionIsRefused) {
  EXPECT_THAT(error_of(fixture("older_functions")),
              AllOf(HasSubstr("0.0.1 for torch 1.0.0"), HasSubstr(kPartVersion),
                    HasSubstr("install both from one build")));
  EXPECT_THAT(error_of(fixture("no_such_function")), HasSubstr("another version"));
}

TEST(Part, ThatWasNotBuiltSaysHowToBuildIt) {
  EXPECT_THAT(
      error_of({"tests", "libthinwire_nothing.so", "f", "build it", "install"}),
      AllOf(HasSubstr("this build of thinwire has no tests: build it"), Not(HasSubstr("install"))));
}

TEST(Part, ThatLacksSomethingSaysWhatToInstall) {
  const auto file = std::filesystem::temp_directory_path() /
                    ("thinwire_part_" + std::to_string(getpid()) + ".so");
  std::ofstream(file) << "no library";
  EXPECT_THAT(error_of({"tests", file.c_str(), "f", "build it", "install what it needs"}),
              AllOf(HasSubstr("cannot be loaded"), HasSubstr(file.string()),
                    HasSubstr("install what it needs")));
  std::filesystem::remove(file);
}

}  // namespace
}  // namespace thinwire::comm
