// A wire that damages one message: LD_PRELOADed into a rank, whose Gloo connections send a header
// and a payload by one writev().
#include <dlfcn.h>
#include <sys/uio.h>

#include <atomic>
#include <string>
#include <vector>

namespace {

std::atomic<bool> armed = false;
std::atomic<int> messages_left = 0;
// Set before `armed`.
std::string kind;
std::size_t place = 0;

using Bytes = std::vector<unsigned char>;

Bytes bytes_of(const iovec& part) {
  const auto* first = static_cast<const unsigned char*>(part.iov_base);
  return {first, first + part.iov_len};
}

void damage(Bytes& header, Bytes& payload) {
  const std::size_t middle = payload.size() / 2;
  if (kind == "flip") payload[middle] ^= 0x10;
  if (kind == "flip-header") header[8 * place % header.size()] ^= 0x10;
  if (kind == "drop") payload.resize(payload.size() - 4);
  if (kind == "repeat") payload.insert(payload.end(), payload.end() - 4, payload.end());
  if (kind == "reorder") std::swap(payload[middle - 1], payload[middle]);
}

}  // namespace

// Damages the next payload but `skip`, or its header in the word of that number. Kinds: flip,
// flip-header, drop, repeat, reorder.
extern "C" void damage_a_message(const char* how, int skip) {
  kind = how;
  place = static_cast<std::size_t>(skip);
  messages_left = skip + 1;
  armed = true;
}

extern "C" ssize_t writev(int file, const iovec* parts, int count) {
  static const auto real = reinterpret_cast<decltype(&writev)>(dlsym(RTLD_NEXT, "writev"));
  const bool is_message = armed && count == 2 && parts[0].iov_len > 0 && parts[1].iov_len >= 8;
  if (!is_message || --messages_left != 0) return real(file, parts, count);
  armed = false;
  Bytes header = bytes_of(parts[0]), payload = bytes_of(parts[1]);
  // Equal bytes are no damage when they change places.
  if (kind == "reorder") {
    const std::size_t middle = payload.size() / 2;
    if (payload[middle - 1] == payload[middle]) kind = "flip";
  }
  damage(header, payload);
  const iovec damaged[2] = {{header.data(), header.size()}, {payload.data(), payload.size()}};
  const ssize_t sent = real(file, damaged, 2);
  if (sent < 0) return sent;
  return static_cast<ssize_t>(parts[0].iov_len + parts[1].iov_len);
}
