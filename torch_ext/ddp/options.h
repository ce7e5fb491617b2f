// What a user of DistributedDataParallel chooses.
#pragma once

#include <string>
#include <vector>

#include "thinwire/common/timeline.h"
#include "thinwire/torch_ext/compression/compression_options.h"

namespace thinwire {

// Options that PyTorch's DistributedDataParallel has keep its names and defaults. All but the
// timeline and those of the communication thread must be equal on all ranks.
struct DistributedDataParallelOptions {
  CompressionOptions compression = {};
  double bucket_cap_mb = 25;
  bool broadcast_buffers = true;  // rank 0's buffers (batch-norm statistics) before each forward
  bool find_unused_parameters = false;
  bool gradient_as_bucket_view = false;  // use zero_grad() of this class, not of the optimizer
  // The same parameters take part in every backward pass, equally often; what they are is learnt in
  // the first one. For models that use a parameter several times in one pass or not at all.
  bool static_graph = false;
  Timeline* timeline = nullptr;  // not owned; must outlive the object
  // Parameters and buffers that are every rank's own affair: neither broadcast nor averaged, and
  // their shapes may differ between ranks. Names as in named_parameters() of the wrapped module, or
  // patterns, in which '*' matches any text and '?' one character. What is marked by
  // comm::mark_rank_local(), as the experts of a MoELayer are, need not be named.
  std::vector<std::string> ignored_parameters = {};
  // Threads of at::parallel_for() on the communication thread; 0 leaves the process's default.
  int communication_threads = 0;
  // CPUs that the communication thread may run on; empty leaves those of the creating thread.
  std::vector<int> communication_cpus = {};
};

// How DistributedDataParallel::join() treats ranks that run out of inputs early.
struct JoinOptions {
  // The averages of steps that some ranks no longer take part in are sums over the world's size, so
  // that every input weighs the same; otherwise over the number of ranks that still have inputs.
  bool divide_by_initial_world_size = true;
  // All ranks throw InvalidArgument as soon as one has no inputs left.
  bool throw_on_early_termination = false;
};

}  // namespace thinwire
