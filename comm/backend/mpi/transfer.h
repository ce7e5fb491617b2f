// The messages of one stage on their way.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "thinwire/comm/backend/mpi/runtime.h"

namespace thinwire::comm::mpi {

// For the progress thread alone. Communicators are named by MPI's integer handles (MPI_Comm_c2f),
// so that no header needs mpi.h.
class Transfer {
 public:
  Transfer();
  ~Transfer();
  Transfer(Transfer&&) noexcept;
  Transfer& operator=(Transfer&&) = delete;

  // Starts `messages` of `operation`; those of before must be done. Throws CommError.
  void post(const Operation& operation, const std::vector<Message>& messages, int communicator);
  // Lets MPI move bytes; returns whether a message, or a part of one, has finished since the last
  // call. Throws CommError naming the peer where one failed or had another size.
  bool test(const Operation& operation);
  // Whether all have finished.
  bool done() const;
  // Sender of the last message received, -1 before any.
  int source() const;

  // Throws CommError where a rank that this one waits for runs another operation.
  void look_for_contradiction(const Operation& operation, int communicator) const;
  // Who has not sent or taken what, in words; `first` becomes the lowest of these ranks.
  std::string missing_peers(int& first) const;

  // Takes back the receives that have not begun. MPI may still touch the rest of the memory,
  // until abandoned() is true.
  void take_back();
  bool abandoned();

 private:
  struct Requests;
  std::unique_ptr<Requests> requests_;
};

// Throws CommError with MPI's text where `code` is not MPI_SUCCESS.
void check_mpi(int code, const char* call);

}  // namespace thinwire::comm::mpi
