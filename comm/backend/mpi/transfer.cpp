#include "thinwire/comm/backend/mpi/transfer.h"

// Without these mpi.h brings MPI's withdrawn C++ classes along.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>

#include "thinwire/common/error.h"

namespace thinwire::comm::mpi {

// What one request of a transfer sends or expects.
struct Part {
  Message::Direction direction;
  int peer;
  std::size_t bytes;
};

namespace {

using Direction = Message::Direction;

std::string text_of(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return concat("MPI error ", code);
  return std::string(text, static_cast<std::size_t>(length));
}

CommError size_error(const Operation& operation, int peer, std::size_t expected,
                     const std::string& sent) {
  return CommError(peer, operation.name, operation.sequence,
                   concat("the sizes differ: this rank expects ", expected, " bytes of rank ", peer,
                          ", which sent ", sent));
}

void check_part(const Operation& operation, const Part& part, const MPI_Status& status, int code) {
  int kind = MPI_SUCCESS;
  if (code != MPI_SUCCESS) MPI_Error_class(code, &kind);
  const int peer = part.peer == kAnyRank ? status.MPI_SOURCE : part.peer;
  if (kind == MPI_ERR_TRUNCATE) throw size_error(operation, peer, part.bytes, "more");
  if (code != MPI_SUCCESS) throw CommError(peer, operation.name, operation.sequence, text_of(code));
  if (part.direction == Direction::kSend) return;
  int received = 0;
  MPI_Get_count(&status, MPI_BYTE, &received);
  if (static_cast<std::size_t>(received) != part.bytes)
    throw size_error(operation, peer, part.bytes, concat(received));
}

}  // namespace

// The vectors run parallel, one element a part; `indices` and `statuses` are room for MPI's answer.
struct Transfer::Requests {
  std::vector<MPI_Request> handles;
  std::vector<Part> parts;
  std::vector<int> indices;
  std::vector<MPI_Status> statuses;
  std::size_t outstanding = 0;
  int source = -1;
};

Transfer::Transfer() : requests_(std::make_unique<Requests>()) {}
Transfer::~Transfer() = default;
Transfer::Transfer(Transfer&&) noexcept = default;

void Transfer::post(const Operation& operation, const std::vector<Message>& messages,
                    int communicator) {
  const MPI_Comm comm = MPI_Comm_f2c(communicator);
  auto& handles = requests_->handles;
  auto& parts = requests_->parts;
  handles.clear();
  parts.clear();
  for (const Message& message : messages) {
    const int peer = message.peer == kAnyRank ? MPI_ANY_SOURCE : message.peer;
    // Messages of one pair and tag keep their order, so the parts meet their counterparts.
    std::size_t offset = 0;
    do {
      const std::size_t bytes = std::min(message.bytes - offset, operation.max_message_bytes);
      const int count = static_cast<int>(bytes);
      void* data = static_cast<char*>(message.data) + offset;
      MPI_Request request = MPI_REQUEST_NULL;
      if (message.direction == Direction::kSend)
        check_mpi(MPI_Isend(data, count, MPI_BYTE, peer, operation.tag, comm, &request),
                  "MPI_Isend");
      else
        check_mpi(MPI_Irecv(data, count, MPI_BYTE, peer, operation.tag, comm, &request),
                  "MPI_Irecv");
      handles.push_back(request);
      parts.push_back({message.direction, message.peer, bytes});
      requests_->outstanding = handles.size();
      offset += bytes;
    } while (offset < message.bytes);
  }
  requests_->indices.resize(handles.size());
  requests_->statuses.resize(handles.size());
}

bool Transfer::test(const Operation& operation) {
  auto& statuses = requests_->statuses;
  int completed = 0;
  const int code =
      MPI_Testsome(static_cast<int>(requests_->handles.size()), requests_->handles.data(),
                   &completed, requests_->indices.data(), statuses.data());
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) check_mpi(code, "MPI_Testsome");
  if (completed == MPI_UNDEFINED || completed == 0) return false;
  requests_->outstanding -= static_cast<std::size_t>(completed);
  for (std::size_t i = 0; i < static_cast<std::size_t>(completed); ++i) {
    const Part& part = requests_->parts[static_cast<std::size_t>(requests_->indices[i])];
    check_part(operation, part, statuses[i],
               code == MPI_SUCCESS ? MPI_SUCCESS : statuses[i].MPI_ERROR);
    if (part.direction == Direction::kReceive) requests_->source = statuses[i].MPI_SOURCE;
  }
  return true;
}

bool Transfer::done() const {
  return requests_->outstanding == 0;
}

int Transfer::source() const {
  return requests_->source;
}

void Transfer::look_for_contradiction(const Operation& operation, int communicator) const {
  if (!operation.contradiction) return;
  for (std::size_t i = 0; i < requests_->handles.size(); ++i) {
    const Part& part = requests_->parts[i];
    if (requests_->handles[i] == MPI_REQUEST_NULL || part.peer == kAnyRank ||
        part.direction != Direction::kReceive)
      continue;
    int found = 0;
    MPI_Status status;
    check_mpi(MPI_Iprobe(part.peer, MPI_ANY_TAG, MPI_Comm_f2c(communicator), &found, &status),
              "MPI_Iprobe");
    if (found == 0) continue;
    const std::string reason = operation.contradiction(status.MPI_TAG);
    if (!reason.empty())
      throw CommError(part.peer, operation.name, operation.sequence,
                      concat("rank ", part.peer, " ", reason));
  }
}

std::string Transfer::missing_peers(int& first) const {
  // A receive that has not come says more than a send that was not taken.
  for (const auto direction : {Direction::kReceive, Direction::kSend}) {
    std::vector<int> peers;
    for (std::size_t i = 0; i < requests_->handles.size(); ++i)
      if (requests_->handles[i] != MPI_REQUEST_NULL && requests_->parts[i].direction == direction)
        peers.push_back(requests_->parts[i].peer);
    std::ranges::sort(peers);
    peers.erase(std::ranges::unique(peers).begin(), peers.end());
    if (peers.empty()) continue;
    first = peers.front();
    if (first == kAnyRank) return "no rank sent anything";
    std::string names;
    for (int peer : peers) names += concat(names.empty() ? "" : ", ", peer);
    return concat("rank(s) ", names,
                  direction == Direction::kReceive ? " sent nothing" : " took nothing");
  }
  return "nothing is missing";
}

void Transfer::take_back() {
  for (std::size_t i = 0; i < requests_->handles.size(); ++i)
    if (requests_->handles[i] != MPI_REQUEST_NULL &&
        requests_->parts[i].direction == Direction::kReceive)
      MPI_Cancel(&requests_->handles[i]);
}

bool Transfer::abandoned() {
  int all = 0;
  const int code = MPI_Testall(static_cast<int>(requests_->handles.size()),
                               requests_->handles.data(), &all, MPI_STATUSES_IGNORE);
  return code == MPI_SUCCESS && all != 0;
}

void check_mpi(int code, const char* call) {
  if (code != MPI_SUCCESS) throw CommError(-1, call, 0, text_of(code));
}

}  // namespace thinwire::comm::mpi
