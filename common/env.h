// Every THINWIRE_* environment variable, read once, at first use.
//
// Note [Variables that must agree]
//
// Each rank reads its own environment, and a launcher may pass other variables to other hosts.
// launch::init() compares what decides a collective and refuses a job whose ranks differ, naming
// variable, ranks and values:
//
//   THINWIRE_BACKEND         as the backend that each rank asks for
//   THINWIRE_TIMEOUT         as the timeout that each rank has, by the program or by the variable
//   THINWIRE_COMPRESSION     itself
//   THINWIRE_CHECK_REPLICAS  itself
//
// DistributedDataParallel and OuterOptimizer compare the last two once more in what they make of
// them, for groups that launch::init() did not make, and the contents of THINWIRE_LINK_MODEL, whose
// path may differ. What is left may differ from rank to rank: it decides no collective
// (THINWIRE_LOG_LEVEL, THINWIRE_DATA, THINWIRE_POSTMORTEM, THINWIRE_DISABLE_CUDA), names what is
// this host's own (THINWIRE_GLOO_INTERFACE) or where the ranks meet in the first place
// (THINWIRE_STORE), or changes no bit of a result (THINWIRE_SIMD).
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace thinwire {

class Env {
 public:
  // Returns the value of a variable, or nullopt. Tests pass their own.
  using Lookup = std::function<std::optional<std::string>(const std::string& name)>;

  // Throws InvalidArgument, naming variable, value and what is accepted.
  explicit Env(const Lookup& lookup);
  // The process's own, parsed at the first call.
  static const Env& get();

  // THINWIRE_LOG_LEVEL: trace, debug, info, warn, error or off.
  const std::string log_level;
  // THINWIRE_COMPRESSION: spec used where the program gives none; empty: no compression.
  const std::string compression;
  // THINWIRE_BACKEND: auto, mpi, gloo or nccl, used where the program gives none.
  const std::string backend;
  // THINWIRE_TIMEOUT: seconds after which a collective fails, used where the program gives none.
  const std::chrono::milliseconds timeout;
  // THINWIRE_CHECK_REPLICAS: every so many steps compare the averaged gradients of all ranks by
  // checksum; 0: never.
  const int check_replicas_every;
  // THINWIRE_GLOO_INTERFACE: network interface for Gloo (else GLOO_SOCKET_IFNAME, else the address
  // that the host's name resolves to).
  const std::string gloo_interface;
  // THINWIRE_DATA: folder of data sets; empty: where Debian's dataset packages put them.
  const std::string data_dir;
  // THINWIRE_LINK_MODEL: file that `thinwire link` wrote; empty: the network was not measured.
  const std::string link_model;
  // THINWIRE_SIMD: the only SIMD target to use, by Highway's name (AVX3, AVX2, SSE4, ...); empty:
  // the best that the processor has.
  const std::string simd;
  // THINWIRE_POSTMORTEM: folder where a rank whose collective fails writes what it was doing, for
  // `thinwire doctor --postmortem`; empty: nowhere.
  const std::string postmortem;
  // THINWIRE_STORE: HOST:PORT of the store that `thinwire store` serves, in place of one in rank 0.
  const std::string store;
  // THINWIRE_DISABLE_CUDA: 1 keeps thinwire from loading its CUDA module.
  const bool disable_cuda;

  // Name, current value as text, what it does: for `thinwire doctor` and the documentation.
  struct Variable {
    std::string name, value, description;
    bool is_set;
    // Decides which collectives a rank makes, or what is in them: ranks with different values would
    // wait for each other, so launch::init() refuses them.
    bool must_agree = false;
  };
  const std::vector<Variable>& variables() const { return variables_; }
  // THINWIRE_* names present in the environment that no member reads (a misspelling, most likely).
  static std::vector<std::string> unknown_variables();

 private:
  struct Reader;
  explicit Env(Reader reader);
  std::vector<Variable> variables_;
};

}  // namespace thinwire
