#include "thinwire/launch/elastic/elastic_training.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <thread>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/torch_ext/checkpoint/program_parts.h"

namespace thinwire::launch {
namespace {

// Worlds, and steps in them, that fail one after another without a step that succeeds.
constexpr int kMostChanges = 10;

ElasticTraining::State state_of_number(std::int64_t& number) {
  return {[&number] {
            return NamedTensors{{"value", integer_tensor(number)}};
          },
          [&number](const NamedTensors& saved) { number = integer_of(saved, "value"); }};
}

ElasticTraining::State state_of_optimizer(torch::optim::Optimizer& optimizer) {
  return {[&optimizer] { return detail::optimizer_tensors(optimizer); },
          [&optimizer](const NamedTensors& saved) {
            detail::load_optimizer_tensors(optimizer, saved);
          }};
}

// A layer of experts is not the same on all ranks, a rank that dies takes its experts with it, and
// the layer keeps the group that it was made over, of this process alone: it would train W times
// alone, and nobody would notice.
void check_has_no_experts(const std::string& name, const torch::nn::Module& module) {
  const auto refuse = [&](const std::string& path, const torch::nn::Module& one) {
    const auto* layer = dynamic_cast<const moe::MoELayer*>(&one);
    check(layer == nullptr || layer->group() == nullptr, "'", path,
          "' is a MoELayer over a process group, each of whose experts is on one rank: ranks that "
          "come and go cannot train it; make it without a group, so that all ranks have all "
          "experts, or train in a job that restarts from a checkpoint");
  };
  refuse(name, module);
  for (const auto& item : module.named_modules(name, /*include_self=*/false))
    refuse(item.key(), *item.value());
}

}  // namespace

void ElasticTraining::add(bool is_replicated, const std::string& name, State state) {
  check(!name.empty() && name.find('/') == std::string::npos,
        "the name of a state must not be empty nor have a '/', got '", name, "'");
  check(std::ranges::none_of(states_, [&](const auto& known) { return known.name == name; }),
        "there is a state '", name, "' already");
  states_.push_back({is_replicated, name, std::move(state)});
}

void ElasticTraining::replicated(const std::string& name, torch::nn::Module& module) {
  check_has_no_experts(name, module);
  add(true, name,
      {[&module] { return detail::module_tensors(module); },
       [&module, name](const NamedTensors& saved) {
         detail::load_module(concat("rank 0's '", name, "'"), module, saved);
       }});
}
void ElasticTraining::replicated(const std::string& name, torch::optim::Optimizer& optimizer) {
  add(true, name, state_of_optimizer(optimizer));
}
void ElasticTraining::replicated(const std::string& name, std::int64_t& number) {
  add(true, name, state_of_number(number));
}
void ElasticTraining::own(const std::string& name, torch::optim::Optimizer& optimizer) {
  add(false, name, state_of_optimizer(optimizer));
}
void ElasticTraining::own(const std::string& name, std::int64_t& number) {
  add(false, name, state_of_number(number));
}

void ElasticTraining::run(const std::function<bool()>& more, const std::function<void()>& step) {
  check(!parts_.empty(), "nothing moves: tell moves() what averages over the ranks");
  if (is_new_) {
    finished_.assign(parts_.size(), 0);
    change("");
  }
  while (true) {
    if (world_.change_is_called()) change("another rank asks for the next world");
    if (!more()) {
      if (wait_for_the_others()) return;
      continue;
    }
    in_step_ = true;
    try {
      for (const Part& part : parts_) part.begin_step();
      step();
      for (std::size_t i = 0; i < parts_.size(); ++i) {
        parts_[i].end_step();
        finished_[i] = parts_[i].finished_steps();
      }
      in_step_ = false;
      changes_in_a_row_ = 0;
    } catch (const CommError& error) {
      // Of an OuterOptimizer the weights may be those after a meeting whose last words failed.
      for (std::size_t i = 0; i < parts_.size(); ++i) finished_[i] = parts_[i].finished_steps();
      // One that fails in every world, for what one rank lacks, would go on for ever.
      if (++changes_in_a_row_ >= kMostChanges) throw;
      change(error.what());
    }
  }
}

void ElasticTraining::change(std::string why) {
  while (true) {
    const auto begin = Clock::now();
    const std::int64_t generation = world_.generation();
    try {
      enter(world_.join_next(is_new_, finished_, why));
      is_new_ = false;
      in_step_ = false;
      log::debug("the world changed in ", seconds_since(begin), " s");
      return;
    } catch (const CommError& error) {
      // Where no world was agreed on, none will be.
      if (world_.generation() == generation || ++changes_in_a_row_ >= kMostChanges) throw;
      why = error.what();
    } catch (const InvalidArgument& error) {
      // Those that were there before fit each other.
      if (is_new_ || ++changes_in_a_row_ >= kMostChanges) throw;
      why = concat("a new rank does not fit: ", error.what());
      log::warn(why);
    }
  }
}

void ElasticTraining::enter(const ElasticWorld::Place& place) {
  is_new_ = is_new_ || place.is_new;
  const bool is_behind = !is_new_ && finished_ != place.furthest;
  for (std::size_t i = 0; i < parts_.size(); ++i) parts_[i].leave(standing_of(i, place));
  hand_over(place, is_behind);
  for (const Part& part : parts_) part.arrive(world_.group(), world_.timeout());
  comm::agree_on_text(*world_.group(), "elastic/settled", "the world", "");
  for (std::size_t i = 0; i < parts_.size(); ++i) finished_[i] = parts_[i].finished_steps();
  world_.settle();
}

Standing ElasticTraining::standing_of(std::size_t part, const ElasticWorld::Place& place) const {
  if (is_new_) return Standing::kNew;
  if (finished_ == place.furthest) return in_step_ ? Standing::kRepeats : Standing::kGoesOn;
  return finished_[part] == place.furthest.at(part) ? Standing::kGoesOn : Standing::kBehind;
}

void ElasticTraining::hand_over(const ElasticWorld::Place& place, bool is_behind) {
  const auto name_of_part = [](std::size_t i) { return concat("part/", i, "/"); };
  const auto name_of_state = [](const std::string& name) { return concat("state/", name, "/"); };
  const bool gives = world_.rank() == 0;
  const bool somebody_is_new = place.all_are_new || place.somebody_is_new;
  NamedTensors mine;
  if (gives) {
    for (std::size_t i = 0; i < parts_.size(); ++i)
      insert_part(mine, name_of_part(i), parts_[i].shared_state());
    for (const auto& [is_replicated, name, state] : states_)
      if (place.somebody_is_behind && (is_replicated || somebody_is_new))
        insert_part(mine, name_of_state(name), state.save());
  }
  const NamedTensors all =
      detail::tensors_of_rank_0(world_.group(), mine, "handing over the state of the training");
  // So that one whose model is another does not leave the others waiting.
  comm::agree_on_result(*world_.group(), "elastic/state", "the state of the training", [&] {
    for (std::size_t i = 0; i < parts_.size(); ++i)
      parts_[i].take_over(part_of(all, name_of_part(i)));
    for (const auto& [is_replicated, name, state] : states_)
      if (!gives && (is_new_ || (is_behind && is_replicated)))
        state.load(part_of(all, name_of_state(name)));
    // With all of it this rank is one of the furthest, also if it gets no further in this world.
    if (is_behind) {
      finished_ = place.furthest;
      in_step_ = false;
    }
    return std::string();
  });
}

bool ElasticTraining::wait_for_the_others() {
  constexpr auto kLookAgain = std::chrono::milliseconds(20);
  try {
    world_.finish();
    while (!world_.change_is_called()) {
      if (world_.all_have_finished()) return true;
      std::this_thread::sleep_for(kLookAgain);
    }
    return false;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommError(-1, "waiting for the others to finish", 0, error.what());
  }
}

}  // namespace thinwire::launch
