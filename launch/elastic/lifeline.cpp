#include "thinwire/launch/elastic/lifeline.h"

#include <fcntl.h>

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <exception>
#include <mutex>

#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire::launch {

using boost::asio::ip::tcp;

struct Lifeline::Port {
  std::mutex mutex;
  boost::asio::io_context context;
  tcp::acceptor acceptor{context};
};

Lifeline::Lifeline(const std::string& host) noexcept {
  try {
    auto port = std::make_unique<Port>();
    const tcp::endpoint endpoint = *tcp::resolver(port->context).resolve(host, "0").begin();
    port->acceptor = tcp::acceptor(port->context, endpoint);
    port->acceptor.non_blocking(true);
    // A program that this process starts does not keep it alive.
    fcntl(port->acceptor.native_handle(), F_SETFD, FD_CLOEXEC);
    address_ = concat(host, ":", port->acceptor.local_endpoint().port());
    port_ = std::move(port);
  } catch (const std::exception& error) {
    log::debug("no port tells the others that this process lives: ", error.what());
  }
}

Lifeline::~Lifeline() = default;

void Lifeline::hang_up() noexcept {
  if (port_ == nullptr) return;
  const std::lock_guard lock(port_->mutex);
  boost::system::error_code error;
  while (!error) {
    const tcp::socket who = port_->acceptor.accept(error);
  }
}

std::vector<Answer> look_at(const std::vector<std::string>& addresses,
                            std::chrono::milliseconds patience) {
  std::vector<Answer> answers(addresses.size(), Answer::kNone);
  boost::asio::io_context context;
  std::vector<tcp::socket> sockets;
  sockets.reserve(addresses.size());
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    const std::size_t colon = addresses[i].rfind(':');
    if (colon == std::string::npos) continue;
    boost::system::error_code error;
    const auto endpoints = tcp::resolver(context).resolve(addresses[i].substr(0, colon),
                                                          addresses[i].substr(colon + 1), error);
    if (error) continue;
    boost::asio::async_connect(
        sockets.emplace_back(context), endpoints,
        [&answer = answers[i]](const boost::system::error_code& outcome, const tcp::endpoint&) {
          if (!outcome) answer = Answer::kAccepted;
          if (outcome == boost::asio::error::connection_refused) answer = Answer::kRefused;
        });
  }
  context.run_for(patience);
  return answers;
}

}  // namespace thinwire::launch
