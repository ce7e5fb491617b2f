// Making process groups: one function for every backend, and a duplicate of an existing one.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::comm {

struct ProcessGroupOptions {
  // A collective that has not finished by then fails on every surviving rank.
  std::chrono::milliseconds timeout = std::chrono::minutes(5);
  // Gloo (that of nccl, too): address or interface to listen on. Both empty:
  // THINWIRE_GLOO_INTERFACE, then GLOO_SOCKET_IFNAME, then the host's name, then loopback.
  std::string hostname = {};
  std::string interface = {};
  // NCCL only: this rank's device.
  int cuda_device = 0;
};

// Sets the environment variables that Gloo and MPI read at their first use (TORCH_FR_BUFFER_SIZE,
// see Note [Flight recorder], and OMPI_MCA_btl_vader_single_copy_mechanism, see Note [No single
// copy]), where the program has not, and ignores SIGPIPE where the program has left it to end the
// process (Note [Broken pipes]): a program whose output nobody reads any more goes on.
// launch::init() begins with it. A program that makes its groups itself calls it in main() before
// it starts threads: setting a variable while another thread reads one is undefined. The first
// group that is made does it at the latest.
void prepare_process();

// Backends that can be used here: "nccl" (where a GPU is), "mpi" (under mpirun), "gloo".
std::vector<std::string> available_backends();

// Makes a group of `size` ranks over "mpi", "gloo" or "nccl". One over nccl takes tensors in host
// memory as well, over gloo: by these the ranks agree on what they do with the others. One over
// gloo takes CUDA tensors as well, through host memory, and so does one over mpi where all ranks
// have GPUs (staged.h). The store is how the ranks find each other
// and where failures are posted; it must be a prefix that no other group uses. For mpi, a group of
// all processes of MPI_COMM_WORLD must number them as that does; one of fewer may number them as it
// likes. Collective: every rank of the group calls it.
//
// Throws InvalidArgument for an unknown backend (listing the known), one that this build lacks
// (saying how to get it), or a rank outside [0, size); CommError when a peer does not come within
// the timeout.
c10::intrusive_ptr<c10d::ProcessGroup> make_process_group(std::string_view backend,
                                                          c10::intrusive_ptr<c10d::Store> store,
                                                          int rank, int size,
                                                          const ProcessGroupOptions& options = {});

// A second group over the same ranks and backend whose operations never interleave with those of
// the first: own store prefix, own connections, own MPI communicator. `name` tells duplicates of
// one group apart. Collective.
c10::intrusive_ptr<c10d::ProcessGroup> duplicate(
    const c10::intrusive_ptr<c10d::ProcessGroup>& group, std::string_view name);

// Whether collectives on this kind of device only queue their work, in the order of the current
// stream, and their Work::wait() makes that stream wait, not the host.
bool orders_streams(c10d::ProcessGroup& group, c10::DeviceType device);

// "mpi", "gloo", "nccl", or what the backend calls itself.
std::string backend_name(const c10d::ProcessGroup& group);

}  // namespace thinwire::comm
