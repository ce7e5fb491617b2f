#include "thinwire/common/printable.h"

#include <gtest/gtest.h>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

TEST(Printable, LeavesTextAloneAndEscapesWhatTerminalsObey) {
  EXPECT_EQ(printable("layers.0.weight größe 权重 🙂"),
            "layers.0.weight größe 权重 🙂");
  EXPECT_EQ(printable("\x1b[31mred\a\x7f"), "\\x1b[31mred\\x07\\x7f");
  EXPECT_EQ(printable(std::string("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable("a\r\nb\tc"), "a\\x0d\\x0ab\\x09c");
  EXPECT_EQ(printable("a\r\nb\tc", Lines::kKeep), "a\\x0d\nb\tc");
  EXPECT_EQ(printable("\xc2\x9b"
                      "2J"),
            "\\xc2\\x9b2J");  // C1: another way to begin a sequence
  EXPECT_EQ(printable("\xe2\x80\xae"
                      "exe"),
            "\\xe2\\x80\\xaeexe");  // right to left
}

TEST(Printable, EscapesWhatIsNoUtf8) {
  EXPECT_EQ(printable("\xff\xfe"), "\\xff\\xfe");
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf");  // too long for '/'
  EXPECT_EQ(printable("\xe0\x80\xaf"), "\\xe0\\x80\\xaf");
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // a surrogate
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
  EXPECT_EQ(printable("\xe6\x9d"), "\\xe6\\x9d");  // cut short
  EXPECT_EQ(printable("\xe6"
                      "abc"),
            "\\xe6"
            "abc");
}

TEST(Printable, EveryErrorIsAndThoseOfFilesAreOneLine) {
  EXPECT_STREQ(FileError("tensor '\x1b[2J\n'").what(), "tensor '\\x1b[2J\\x0a'");
  EXPECT_STREQ(FrameError("\x1b").what(), "\\x1b");
  EXPECT_STREQ(InvalidArgument("a\nb\x1b").what(), "a\nb\\x1b");
  EXPECT_STREQ(CommError(1, "op", 0, "\x07").what(), "op #0 failed, rank 1 is at fault: \\x07");
}

}  // namespace
}  // namespace thinwire
