#include "thinwire/common/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "temporary_file.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire {
namespace {

using testing::error_of;
using ::testing::HasSubstr;

TEST(AtomicFile, AppearsWhenItIsComplete) {
  const TemporaryFile file("atomic");
  {
    AtomicFile out(file.path(), /*overwrite=*/false);
    out.write("one");
    EXPECT_FALSE(std::filesystem::exists(file.path()));
  }
  EXPECT_FALSE(std::filesystem::exists(file.path()));
  AtomicFile out(file.path(), false);
  out.write("two");
  out.commit();
  EXPECT_EQ(file.text(), "two");
  EXPECT_THAT(error_of<FileError>([&] { AtomicFile(file.path(), false); }),
              HasSubstr("exists already"));
}

// A rename would put a regular file in the place of /dev/null.
TEST(AtomicFile, ReplacesNothingButRegularFiles) {
  const TemporaryFile pipe("pipe"), link("link"), target("target"), folder("folder");
  ASSERT_EQ(::mkfifo(pipe.path().c_str(), 0600), 0);
  std::filesystem::create_directory(folder.path());
  std::filesystem::create_symlink("/dev/null", link.path());
  for (const auto& path :
       {pipe.path(), folder.path(), link.path(), std::filesystem::path("/dev/null")}) {
    const auto before = std::filesystem::symlink_status(path).type();
    EXPECT_THAT(error_of<FileError>([&] { AtomicFile(path, true).commit(); }),
                HasSubstr("no regular file"))
        << path;
    EXPECT_EQ(std::filesystem::symlink_status(path).type(), before) << path;
  }
  // What became one meanwhile is not replaced either.
  AtomicFile out(target.path(), true);
  ASSERT_EQ(::mkfifo(target.path().c_str(), 0600), 0);
  EXPECT_THAT(error_of<FileError>([&] { out.commit(); }), HasSubstr("no regular file"));
  EXPECT_TRUE(std::filesystem::is_fifo(target.path()));
}

}  // namespace
}  // namespace thinwire
