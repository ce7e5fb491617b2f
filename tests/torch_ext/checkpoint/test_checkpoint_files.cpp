// The files of a checkpoint, on a disk that does not keep what it is given.
#include "thinwire/torch_ext/checkpoint/checkpoint_files.h"

#include <ATen/ops/arange.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <string_view>

#include "thinwire/common/error.h"
#include "thinwire/tests/common/remove_tree.h"

namespace {

// Called with the name of each file that is about to take its own, when all of it is written.
std::function<void(const char*)> before_rename;

}  // namespace

// In place of libc's, for the whole program.
extern "C" __attribute__((visibility("default"))) int rename(const char* from,
                                                             const char* to) noexcept {
  if (before_rename) before_rename(from);
  return ::renameat(AT_FDCWD, from, AT_FDCWD, to);
}

namespace thinwire {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class CheckpointFilesTest : public ::testing::Test {
 protected:
  CheckpointFilesTest()
      : directory_(fs::temp_directory_path() / concat("thinwire-checkpoint-files-", ::getpid())) {
    remove_tree(directory_);
  }
  ~CheckpointFilesTest() override {
    before_rename = nullptr;
    remove_tree(directory_);
  }
  detail::CheckpointFile file() const { return {directory_, 3, 2, 1, 77}; }

  const fs::path directory_;
  const NamedTensors tensors_ = {{"a", at::arange(1000, at::kFloat)},
                                 {"b", at::arange(7, at::kLong)}};
};

TEST_F(CheckpointFilesTest, WhatIsReadHasTheBitsOfWhatWasWritten) {
  detail::write_checkpoint_file(file(), tensors_);
  const NamedTensors read = detail::read_checkpoint_file(file());
  ASSERT_EQ(read.size(), tensors_.size());
  for (const auto& [name, tensor] : tensors_) EXPECT_TRUE(same_bits(read.at(name), tensor)) << name;
}

// The hash is that of the bytes which were to be written. One of the file as it lies there would
// fit whatever lies there.
TEST_F(CheckpointFilesTest, BytesThatAreDamagedOnTheirWayToTheDiskAreNoticed) {
  // Begin and end of the header, the first and the last tensor.
  const auto size = static_cast<std::streamoff>([&] {
    detail::write_checkpoint_file(file(), tensors_);
    return fs::file_size(file().tensors());
  }());
  for (const std::streamoff at : {std::streamoff{9}, std::streamoff{60}, size - 3000, size - 1}) {
    int damaged = 0;
    before_rename = [&](const char* path) {
      if (std::string_view(path).find(".safetensors") == std::string_view::npos) return;
      std::fstream bytes(path, std::ios::in | std::ios::out | std::ios::binary);
      bytes.seekg(at);
      const int before = bytes.get();
      bytes.seekp(at);
      bytes.put(static_cast<char>(before ^ 4));
      ++damaged;
    };
    detail::write_checkpoint_file(file(), tensors_);
    EXPECT_EQ(damaged, 1);
    before_rename = nullptr;
    try {
      detail::read_checkpoint_file(file());
      ADD_FAILURE() << "byte " << at << " is another, and nobody notices";
    } catch (const FileError& error) {
      EXPECT_THAT(error.what(), HasSubstr(file().tensors().filename().string())) << at;
      if (at > 1000) {
        EXPECT_THAT(error.what(), HasSubstr("is damaged: its hash is not its manifest's"));
      }
    }
  }
}

// Lost at the end, as a disk that is full or a network file system may do without a word.
TEST_F(CheckpointFilesTest, BytesThatAreLostOnTheirWayToTheDiskAreNoticed) {
  before_rename = [&](const char* path) {
    if (std::string_view(path).find(".safetensors") != std::string_view::npos)
      fs::resize_file(path, fs::file_size(path) - 8);
  };
  detail::write_checkpoint_file(file(), tensors_);
  before_rename = nullptr;
  EXPECT_THAT([&] { detail::read_checkpoint_file(file()); },
              ::testing::ThrowsMessage<FileError>(HasSubstr(file().tensors().filename().string())));
}

}  // namespace
}  // namespace thinwire
