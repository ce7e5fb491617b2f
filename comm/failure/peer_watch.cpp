#include "thinwire/comm/failure/peer_watch.h"

#include <ATen/ops/empty.h>

#include <chrono>
#include <exception>
#include <vector>

#include "thinwire/common/log.h"

namespace thinwire::comm {
namespace {

constexpr int kTag = 0x7457;  // of no other message of a duplicate
// Not the group's timeout, after which Gloo would close every connection.
constexpr auto kForEver = std::chrono::hours(24 * 365);

}  // namespace

PeerWatch::PeerWatch(c10d::ProcessGroup& group) {
  const auto backend = group.getBackend(c10::DeviceType::CPU);
  if (group.getSize() == 1 || backend->getBackendName() != "gloo") return;
  word_ = at::empty({1}, at::kByte);
  std::vector<at::Tensor> words = {word_};
  work_ = backend->recv(words, (group.getRank() + 1) % group.getSize(), kTag);
  thread_ = std::thread([this] {
    try {
      work_->wait(kForEver);
    } catch (const std::exception& error) {
      if (stopping_) return;
      log::debug("the next rank has closed its connection: ", error.what());
      is_gone_ = true;
    }
  });
}

PeerWatch::~PeerWatch() {
  if (!thread_.joinable()) return;
  stopping_ = true;
  work_->abort();
  thread_.join();
}

}  // namespace thinwire::comm
