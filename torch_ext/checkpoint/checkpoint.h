// Saving and restoring all that a training program remembers, in one call each.
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/state/named_tensors.h"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace thinwire {

struct CheckpointOptions {
  // One that all ranks see, or each host's own. A job of another size needs the former.
  std::filesystem::path directory;
  // So many of the newest steps stay; at least 1.
  int keep = 2;
  // Whether save() returns once the tensors are copied and a thread writes them, which gives way to
  // all others. The copies' memory is kept from save to save: as much as the state has, in the
  // host's memory, and the first save takes it from the system.
  bool asynchronous = false;
};

// Parts of a program whose state() and load_state() are of named tensors: DistributedDataParallel,
// OuterOptimizer, MoELayer's state.
template <typename Part>
concept HasNamedState = requires(Part& part, const NamedTensors& state) {
  { part.state() } -> std::convertible_to<NamedTensors>;
  part.load_state(state);
};
// A state without copies, which save() makes itself where it needs any: valid until the part's next
// step.
template <typename Part>
concept HasStateInPlace = requires(const Part& part) {
  { part.state_in_place() } -> std::convertible_to<NamedTensors>;
};

//   thinwire::Checkpoint checkpoint(world.group(), {.directory = "run1"});
//   checkpoint.add("model", *net);
//   checkpoint.add("optimizer", optimizer);
//   checkpoint.add("gradients", ddp);
//   checkpoint.add_random_state();
//   std::int64_t step = checkpoint.load().value_or(0);   // goes on where the last job stopped
//   for (; step < steps; ++step) { ...; if (step % 100 == 99) checkpoint.save(step + 1); }
//
// Every rank writes directory/step-N/rank-R-of-W.safetensors, whose tensors are named PART/NAME,
// and then rank-R-of-W.json, which has the number of bytes and a hash of the first: a file that is
// there is complete, and a step is complete where all ranks have both. A process that ends at any
// moment leaves the steps before as they were.
//
// What is restored has the same bits. In a job of another size the states are merged, part by part
// (merge_states()): residuals become their mean over the old ranks; random states stay with the
// ranks that had one.
//
// Ranks must add the same parts in the same order; all of them outlive the checkpoint. save() and
// load() are collective, and all ranks call them between the same steps. Not thread-safe.
class Checkpoint {
 public:
  // Collective. Throws InvalidArgument, on every rank, for an empty directory name, a `keep` below
  // 1, or where `keep` or `asynchronous` differ.
  Checkpoint(c10::intrusive_ptr<c10d::ProcessGroup> group, CheckpointOptions options);
  // Waits for what is being written; a failure is logged.
  ~Checkpoint();
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  // What a rank of a job of another size gets: the ranks' states merged; its own or else that of
  // another rank, for states that mean the same on all ranks without having the same bits, such as
  // an optimizer's; its own or nothing, for what no two ranks may share, such as random numbers.
  enum class AcrossWorlds { kMerged, kAnyRanks, kOwn };
  // What `save` gives may share memory with the program: it is copied or written before save()
  // returns.
  struct Part {
    std::function<NamedTensors()> save;
    std::function<void(const NamedTensors&)> load;
    AcrossWorlds across_worlds = AcrossWorlds::kMerged;
  };
  // Throws InvalidArgument for a name that is taken, empty or has a '/'.
  void add(const std::string& name, Part part);
  // All parameters and buffers, which get the values in place; names, shapes and types must be
  // those saved.
  void add(const std::string& name, torch::nn::Module& module);
  // All that torch::save() keeps of it. In a job of another size every rank gets one rank's state:
  // right where all ranks optimise the same parameters.
  void add(const std::string& name, torch::optim::Optimizer& optimizer);
  // By the names of what it optimises (optimizer_state()), for ranks that hold different
  // parameters. `pieces` is called when something is saved or loaded.
  void add(const std::string& name, torch::optim::Optimizer& optimizer,
           std::function<NamedTensors()> pieces);
  template <HasNamedState State>
  void add(const std::string& name, State& state) {
    const auto save = [&state] {
      if constexpr (HasStateInPlace<State>)
        return NamedTensors(state.state_in_place());
      else
        return NamedTensors(state.state());
    };
    add(name, Part{save, [&state](const NamedTensors& saved) { state.load_state(saved); }});
  }
  // Of torch's default generator on the CPU.
  void add_random_state();

  // Saves as `step` and, once all ranks have it, removes what is older than the last options.keep
  // steps that this object has saved or loaded. Throws InvalidArgument, on every rank with the name
  // of the one at fault, where a rank cannot write (FileError with one rank) or saves another step;
  // with `asynchronous` at the next call. A step that is there already is written anew.
  void save(std::int64_t step);
  // Waits until what was saved is on the disk. Throws as save().
  void wait();

  // Loads the newest step that is complete on all ranks and returns it; nothing where no rank has
  // any, or where the job ended in its first save, which only some ranks finished. A step is
  // complete where the files of all ranks are of one save(). Throws InvalidArgument, on every rank
  // with the name of the one at fault, for files that are torn or damaged (FileError with one
  // rank), of another program (other parts or shapes), or where ranks have steps but none in
  // common; CommError where a rank cannot read its directory.
  std::optional<std::int64_t> load();

 private:
  struct Saved;
  NamedTensors collect() const;
  void write(std::int64_t step, std::int64_t save, const NamedTensors& tensors) const;
  void note_complete(std::int64_t step);
  void remove_own_files(std::int64_t step,
                        const std::map<int, std::map<int, std::int64_t>>& worlds) const;
  std::vector<Saved> loadable() const;
  std::vector<std::set<Saved>> loadable_by_rank(const std::vector<Saved>& own);
  std::vector<NamedTensors> read(const Saved& saved) const;
  void load_parts(const std::vector<NamedTensors>& of_ranks, bool same_world);

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const CheckpointOptions options_;
  std::vector<std::pair<std::string, Part>> parts_;
  std::uint64_t calls_ = 0;
  std::string name_;
  std::uint64_t run_ = 0;  // a number of this object's, the same on all ranks
  std::set<std::int64_t> complete_;
  // Of an asynchronous save. What writes them reads them, so they change only while nothing does.
  NamedTensors copies_;
  std::future<void> writing_;
  std::int64_t writing_step_ = 0;
};

}  // namespace thinwire
