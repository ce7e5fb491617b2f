#include "thinwire/tests/support/ptx/machine.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

#include "thinwire/tests/support/ptx/alu.h"

namespace thinwire::testing::ptx {
namespace {

struct Register {
  std::uint64_t bits = 0;
  bool defined = false;
};

enum class State : std::uint8_t { kRuns, kAtBarrier, kVotes, kDone };

constexpr std::size_t kWarp = 32;

struct Thread {
  std::uint32_t number = 0;
  std::size_t at = 0;  // next instruction
  State state = State::kRuns;
  std::vector<Register> registers;
  std::vector<std::byte> local;
};

// One block and the launch that it belongs to.
class Block {
 public:
  Block(const Kernel& kernel, const Launch& launch, GlobalMemory& memory, std::uint32_t number,
        Statistics& statistics)
      : kernel_(kernel),
        launch_(launch),
        memory_(memory),
        number_(number),
        statistics_(statistics),
        shared_bytes_(kernel.shared_bytes),
        shared_(shared_bytes_) {
    shared_.forget_contents();
    for (std::uint32_t t = 0; t < launch.threads; ++t) {
      threads_.push_back({t, 0, State::kRuns,
                          std::vector<Register>(static_cast<std::size_t>(kernel.registers)),
                          std::vector<std::byte>(kernel.local_bytes)});
    }
  }

  void run() {
    std::mt19937_64 generator(launch_.seed + number_);
    std::vector<std::size_t> order(threads_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    while (true) {
      std::ranges::shuffle(order, generator);
      for (const std::size_t t : order) {
        thread_ = &threads_[t];
        if (thread_->state == State::kRuns) run_on();
      }
      if (count_votes()) continue;
      const auto in = [&](State state) {
        return std::ranges::count(threads_, state, &Thread::state);
      };
      if (in(State::kVotes) != 0) fail("a vote that not all threads of a warp reach");
      const auto done = in(State::kDone);
      if (done == std::ssize(threads_)) return;
      if (done != 0) fail("a barrier that " + std::to_string(done) + " thread(s) never reach");
      for (Thread& thread : threads_) thread.state = State::kRuns;
      ++epoch_;
      ++statistics_.barriers;
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    const std::size_t last = thread_->at == 0 ? 0 : thread_->at - 1;
    throw std::runtime_error(kernel_.name + ", block " + std::to_string(number_) + ", thread " +
                             std::to_string(thread_->number) + ", PTX line " +
                             std::to_string(kernel_.code[last].line) + ": " + what);
  }

  // Gives their result to the threads of each warp that is at one vote as a whole. Returns whether
  // there is such a warp.
  bool count_votes() {
    bool any = false;
    for (std::size_t begin = 0; begin < threads_.size(); begin += kWarp) {
      const auto warp =
          std::span(threads_).subspan(begin, std::min(kWarp, threads_.size() - begin));
      const auto is_there = [&](const Thread& thread) {
        return thread.state == State::kVotes && thread.at == warp.front().at;
      };
      if (!std::ranges::all_of(warp, is_there)) continue;
      any = true;
      const Instruction& vote = kernel_.code[warp.front().at - 1];
      std::uint64_t ballot = 0;
      for (std::size_t t = 0; t < warp.size(); ++t) {
        thread_ = &warp[t];
        if (low_bits(value_of(vote.sources[1]), 32) != 0xFFFFFFFFu) fail("a vote of some threads");
        ballot |= static_cast<std::uint64_t>(value_of(vote.sources[0]) != 0) << t;
      }
      for (Thread& thread : warp) {
        thread_ = &thread;
        set(vote.results.front(), ballot);
        thread.state = State::kRuns;
      }
    }
    return any;
  }

  void run_on() {
    while (true) {
      if (thread_->at >= kernel_.code.size()) fail("the code ends without ret");
      const Instruction& i = kernel_.code[thread_->at++];
      if (++statistics_.instructions > kMostSteps) fail("more than kMostSteps instructions");
      if (i.predicate >= 0 && (read_register(i.predicate) != 0) == i.negated) continue;
      if (i.op == Op::kBra) {
        thread_->at = static_cast<std::size_t>(i.target);
      } else if (i.op == Op::kRet) {
        thread_->state = State::kDone;
        return;
      } else if (i.op == Op::kBar || i.op == Op::kVote) {
        thread_->state = i.op == Op::kBar ? State::kAtBarrier : State::kVotes;
        return;
      } else if (i.op == Op::kLd) {
        load(i);
      } else if (i.op == Op::kSt) {
        store(i);
      } else if (i.op == Op::kAtom || i.op == Op::kRed) {
        add_at_once(i);
      } else if (i.results.size() > 1) {
        unpack(i);
      } else {
        set(i.results.front(), compute(i));
      }
    }
  }

  // mov of a register to several, of equal parts of its width.
  void unpack(const Instruction& i) {
    const int part = i.type.bits / static_cast<int>(i.results.size());
    const std::uint64_t value = value_of(i.sources[0]);
    for (std::size_t n = 0; n < i.results.size(); ++n)
      set(i.results[n], low_bits(value >> (part * static_cast<int>(n)), part));
  }

  std::uint64_t read_register(int index) const {
    const Register& one = thread_->registers[static_cast<std::size_t>(index)];
    if (!one.defined) fail("register " + std::to_string(index) + " was never written");
    return one.bits;
  }

  std::uint64_t value_of(const Operand& operand) const {
    switch (operand.kind) {
      case Operand::Kind::kRegister:
        return read_register(operand.index) + operand.value;
      case Operand::Kind::kSpecial: {
        const std::uint32_t special[] = {thread_->number, launch_.threads, number_, launch_.blocks};
        return special[operand.index];
      }
      default:
        return operand.value;
    }
  }

  void set(const Operand& operand, std::uint64_t bits) {
    thread_->registers[static_cast<std::size_t>(operand.index)] = {bits, true};
  }

  // Calls access(bytes, offset) with the bytes that an address lies in.
  template <typename Access>
  void access(const Instruction& i, std::uint64_t address, std::size_t count,
              const Access& do_access) {
    if (address % count != 0)
      fail("an access of " + std::to_string(count) + " bytes at " + std::to_string(address) +
           " is not aligned");
    std::string fault;
    if (i.space == Space::kShared) {
      if (address + count > shared_.size())
        fail("shared byte " + std::to_string(address) + " is out of bounds");
      fault = do_access(shared_, address);
    } else if (i.space == Space::kGlobal || i.space == Space::kGeneric) {
      std::size_t offset = 0;
      WatchedBytes* range = memory_.find(address, count, offset);
      if (range == nullptr)
        fail("no memory of " + std::to_string(count) + " bytes at " + std::to_string(address));
      fault = do_access(*range, offset);
    }
    if (!fault.empty()) fail((i.space == Space::kShared ? "shared " : "global ") + fault);
  }

  void load(const Instruction& i) {
    const std::uint64_t address = value_of(i.sources.front());
    const std::size_t size = i.type.bytes(), count = size * i.results.size();
    std::byte bytes[32];
    if (i.space == Space::kParameter || i.space == Space::kLocal) {
      const std::span<const std::byte> from = i.space == Space::kLocal
                                                  ? std::span<const std::byte>(thread_->local)
                                                  : launch_.parameters;
      if (address + count > from.size()) fail("parameter or local byte out of bounds");
      std::memcpy(bytes, from.data() + address, count);
    } else {
      access(i, address, count, [&](WatchedBytes& range, std::size_t offset) {
        return range.read(offset, count, actor(), bytes);
      });
    }
    for (std::size_t n = 0; n < i.results.size(); ++n) {
      std::uint64_t value = 0;
      std::memcpy(&value, bytes + n * size, size);
      if (i.type.kind == Type::Kind::kSigned)
        value = static_cast<std::uint64_t>(sign_extended(value, i.type.bits));
      set(i.results[n], value);
    }
  }

  void store(const Instruction& i) {
    const std::uint64_t address = value_of(i.results.front());
    const std::size_t size = i.type.bytes(), count = size * i.sources.size();
    std::byte bytes[32];
    for (std::size_t n = 0; n < i.sources.size(); ++n) {
      const std::uint64_t value = value_of(i.sources[n]);
      std::memcpy(bytes + n * size, &value, size);
    }
    if (i.space == Space::kLocal) {
      if (address + count > thread_->local.size()) fail("local byte out of bounds");
      std::memcpy(thread_->local.data() + address, bytes, count);
      return;
    }
    access(i, address, count, [&](WatchedBytes& range, std::size_t offset) {
      return range.write(offset, count, actor(), bytes);
    });
  }

  // atom.add and red.add of integers.
  void add_at_once(const Instruction& i) {
    if (i.type.kind == Type::Kind::kFloat) fail("the order of sums of floats is not defined");
    const bool gives = i.op == Op::kAtom;
    const std::uint64_t address = value_of(gives ? i.sources[0] : i.results[0]);
    const std::uint64_t more = value_of(gives ? i.sources[1] : i.sources[0]);
    const std::size_t size = i.type.bytes();
    std::uint64_t before = 0;
    access(i, address, size, [&](WatchedBytes& range, std::size_t offset) {
      return range.add(offset, size, actor(), more, before);
    });
    if (gives) set(i.results[0], before);
  }

  Actor actor() const { return {number_, thread_->number, epoch_}; }

  std::uint64_t compute(const Instruction& i) const {
    if (i.op == Op::kMov && i.sources.size() > 1) return packed(i);
    std::array<std::uint64_t, 4> values{};
    for (std::size_t n = 0; n < i.sources.size(); ++n) values[n] = value_of(i.sources[n]);
    try {
      return result_of(i, values);
    } catch (const std::domain_error& error) {
      fail(error.what());
    }
  }

  // mov of several registers to one twice as wide.
  std::uint64_t packed(const Instruction& i) const {
    const int part = i.type.bits / static_cast<int>(i.sources.size());
    std::uint64_t value = 0;
    for (std::size_t n = 0; n < i.sources.size(); ++n)
      value |= low_bits(value_of(i.sources[n]), part) << (part * static_cast<int>(n));
    return value;
  }

  const Kernel& kernel_;
  const Launch& launch_;
  GlobalMemory& memory_;
  const std::uint32_t number_;
  Statistics& statistics_;
  std::vector<std::byte> shared_bytes_;
  WatchedBytes shared_;
  std::vector<Thread> threads_;
  Thread* thread_ = nullptr;
  std::uint32_t epoch_ = 0;
};

}  // namespace

Statistics run(const Kernel& kernel, const Launch& launch, GlobalMemory& memory) {
  if (launch.parameters.size() != kernel.parameter_bytes)
    throw std::runtime_error(kernel.name + " takes " + std::to_string(kernel.parameter_bytes) +
                             " bytes of parameters, got " +
                             std::to_string(launch.parameters.size()));
  Statistics statistics;
  for (std::uint32_t b = 0; b < launch.blocks; ++b)
    Block(kernel, launch, memory, b, statistics).run();
  return statistics;
}

}  // namespace thinwire::testing::ptx
