#include "thinwire/common/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <system_error>

#include "thinwire/common/error.h"

namespace thinwire {

AtomicFile::AtomicFile(std::filesystem::path target, bool overwrite)
    : target_(std::move(target)), overwrite_(overwrite) {
  check_target(target_, overwrite_);
  static std::atomic<unsigned> counter{0};
  temporary_ = target_;
  temporary_ += concat(".tmp-", ::getpid(), "-", counter++);
  const int descriptor = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) fail("write");
  file_ = ::fdopen(descriptor, "wb");
  if (file_ == nullptr) {
    ::close(descriptor);
    ::unlink(temporary_.c_str());
    fail("open");
  }
}

AtomicFile::~AtomicFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (!bytes.empty() && std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size())
    fail("write");
}

void AtomicFile::write(std::string_view text) {
  write(std::as_bytes(std::span(text)));
}

void AtomicFile::commit() {
  if (std::fflush(file_) != 0 || ::fsync(::fileno(file_)) != 0) fail("flush");
  check_target(target_, overwrite_);
  if (std::rename(temporary_.c_str(), target_.c_str()) != 0) fail("rename");
  std::fclose(file_);
  file_ = nullptr;
}

void AtomicFile::check_target(const std::filesystem::path& target, bool overwrite) {
  std::error_code ignored;
  const auto link = std::filesystem::symlink_status(target, ignored);
  if (!std::filesystem::exists(link)) return;
  // A link that leads nowhere is no file yet; one to a device would be replaced like the device.
  const auto found = std::filesystem::status(target, ignored);
  if (std::filesystem::exists(found) && !std::filesystem::is_regular_file(found))
    throw FileError(
        concat(target.string(), " is no regular file; it would be replaced, not written to"));
  if (!overwrite)
    throw FileError(concat(target.string(), " exists already and is not overwritten"));
}

void AtomicFile::fail(std::string_view action) const {
  const int code = errno;
  throw FileError(
      concat("cannot ", action, " ", target_.string(), ": ", std::system_category().message(code)));
}

}  // namespace thinwire
