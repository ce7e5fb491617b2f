// PTX text, as nvcc writes it, read into instructions that machine.h executes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace thinwire::testing::ptx {

enum class Op : std::uint8_t {
  kMov,
  kLd,
  kSt,
  kCvt,
  kAdd,
  kSub,
  kMul,
  kMad,
  kFma,
  kDiv,
  kRem,
  kRcp,
  kSqrt,
  kNeg,
  kAbs,
  kMin,
  kMax,
  kAnd,
  kOr,
  kXor,
  kNot,
  kShl,
  kShr,
  kShf,
  kBfi,
  kBfe,
  kPrmt,
  kSelp,
  kSetp,
  kPopc,
  kClz,
  kAtom,
  kRed,
  kBra,
  kBar,
  kRet,
  kVote,
};

// The kind and width of an operand: PTX's .u32, .f64, .pred, ...; bits without a sign are
// kUnsigned.
struct Type {
  enum class Kind : std::uint8_t { kNone, kPredicate, kUnsigned, kSigned, kFloat };
  Kind kind = Kind::kNone;
  std::uint8_t bits = 0;
  std::size_t bytes() const { return bits / 8; }
};

enum class Space : std::uint8_t { kGeneric, kGlobal, kShared, kLocal, kParameter };

enum class Comparison : std::uint8_t {
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kEqu,
  kNeu,
  kLtu,
  kLeu,
  kGtu,
  kGeu
};

struct Operand {
  enum class Kind : std::uint8_t { kRegister, kImmediate, kSpecial };
  Kind kind = Kind::kImmediate;
  int index = 0;            // register, or which special one: thread, threads, block, blocks
  std::uint64_t value = 0;  // of an immediate; offset to a register that is an address
};

struct Instruction {
  Op op = Op::kMov;
  Type type = {};  // of the result, or of what is compared or moved
  Type from = {};  // cvt: of the source
  Space space = Space::kGeneric;
  Comparison comparison = Comparison::kEq;
  bool wide = false;       // mul, mad: the result is twice as wide
  bool high = false;       // mul: the upper half
  bool truncates = false;  // cvt.rzi
  bool to_left = false;    // shf.l
  int predicate = -1;      // register; -1: always executed
  bool negated = false;
  std::vector<Operand> results = {}, sources = {};
  int target = -1;  // bra: index of an instruction
  int line = 0;     // of the text, for messages
};

// Where an argument of a kernel lies among all of them.
struct Parameter {
  std::size_t offset = 0, bytes = 0;
};

struct Kernel {
  std::string name;  // mangled
  std::vector<Parameter> parameters = {};
  std::size_t parameter_bytes = 0, shared_bytes = 0, local_bytes = 0;
  int registers = 0;
  std::vector<Instruction> code = {};
};

// The kernels of a file. Throws std::runtime_error that names the line for anything that the
// machine does not know: nothing is skipped.
std::vector<Kernel> parse(std::string_view text);

// The kernels with one of `name`'s instructions, a barrier, made a jump to the next.
std::vector<Kernel> without_barrier(std::vector<Kernel> kernels, std::string_view name,
                                    std::size_t instruction);

}  // namespace thinwire::testing::ptx
