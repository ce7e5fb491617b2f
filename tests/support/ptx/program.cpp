#include "thinwire/tests/support/ptx/program.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <regex>
#include <sstream>
#include <stdexcept>

namespace thinwire::testing::ptx {
namespace {

const std::map<std::string, Op, std::less<>> kOps = {
    {"mov", Op::kMov},     {"ld", Op::kLd},     {"st", Op::kSt},     {"cvt", Op::kCvt},
    {"cvta", Op::kMov},    {"add", Op::kAdd},   {"sub", Op::kSub},   {"mul", Op::kMul},
    {"mad", Op::kMad},     {"fma", Op::kFma},   {"div", Op::kDiv},   {"rem", Op::kRem},
    {"rcp", Op::kRcp},     {"sqrt", Op::kSqrt}, {"neg", Op::kNeg},   {"abs", Op::kAbs},
    {"min", Op::kMin},     {"max", Op::kMax},   {"and", Op::kAnd},   {"or", Op::kOr},
    {"xor", Op::kXor},     {"not", Op::kNot},   {"shl", Op::kShl},   {"shr", Op::kShr},
    {"shf", Op::kShf},     {"bfi", Op::kBfi},   {"bfe", Op::kBfe},   {"prmt", Op::kPrmt},
    {"selp", Op::kSelp},   {"setp", Op::kSetp}, {"popc", Op::kPopc}, {"clz", Op::kClz},
    {"atom", Op::kAtom},   {"red", Op::kRed},   {"bra", Op::kBra},   {"bar", Op::kBar},
    {"barrier", Op::kBar}, {"ret", Op::kRet},   {"vote", Op::kVote}};

const std::map<std::string, Comparison, std::less<>> kComparisons = {
    {"eq", Comparison::kEq},   {"ne", Comparison::kNe},   {"lt", Comparison::kLt},
    {"le", Comparison::kLe},   {"gt", Comparison::kGt},   {"ge", Comparison::kGe},
    {"equ", Comparison::kEqu}, {"neu", Comparison::kNeu}, {"ltu", Comparison::kLtu},
    {"leu", Comparison::kLeu}, {"gtu", Comparison::kGtu}, {"geu", Comparison::kGeu}};

const std::map<std::string, Space, std::less<>> kSpaces = {{"global", Space::kGlobal},
                                                           {"shared", Space::kShared},
                                                           {"local", Space::kLocal},
                                                           {"param", Space::kParameter}};

// Modifiers that change nothing here: rounding to nearest is what the host does, one block is one
// barrier's group.
const std::vector<std::string> kNeutral = {"rn", "lo", "uni", "to",  "sync",
                                           "nc", "v2", "v4",  "cta", "wrap"};

std::optional<Type> type_of(std::string_view name) {
  if (name == "pred") return Type{Type::Kind::kPredicate, 8};
  static const std::string letters = "busf";
  const auto kind = letters.find(name.front());
  if (kind == std::string::npos || name.size() < 2) return std::nullopt;
  for (const int bits : {8, 16, 32, 64}) {
    if (name.substr(1) != std::to_string(bits)) continue;
    constexpr Type::Kind kinds[] = {Type::Kind::kUnsigned, Type::Kind::kUnsigned,
                                    Type::Kind::kSigned, Type::Kind::kFloat};
    return Type{kinds[kind], static_cast<std::uint8_t>(bits)};
  }
  return std::nullopt;
}

std::string trimmed(std::string_view text) {
  const auto begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1));
}

// Splits at commas that are outside of braces and brackets.
std::vector<std::string> split_operands(std::string_view text) {
  std::vector<std::string> parts;
  int depth = 0;
  std::string part;
  for (const char c : text) {
    depth += c == '{' || c == '[' ? 1 : c == '}' || c == ']' ? -1 : 0;
    if (c == ',' && depth == 0) {
      parts.push_back(trimmed(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trimmed(part).empty()) parts.push_back(trimmed(part));
  return parts;
}

class Parser {
 public:
  std::vector<Kernel> parse(std::string_view text) {
    std::istringstream in{std::string(text)};
    for (std::string line; std::getline(in, line);) {
      ++line_;
      if (const auto comment = line.find("//"); comment != std::string::npos) line.resize(comment);
      line = trimmed(line);
      if (!line.empty()) read_line(line);
    }
    return std::move(kernels_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("PTX line " + std::to_string(line_) + ": " + what);
  }

  void read_line(const std::string& line) {
    static const std::regex entry(R"((?:\.visible |\.weak )?\.entry (\S+?)\(?)");
    static const std::regex parameter(
        R"(\.param (?:\.align \d+ )?\.(\w\d+) (\w+)(?:\[(\d+)\])?,?)");
    static const std::regex variable(R"(\.(shared|local) \.align (\d+) \.b8\s+(\S+)\[(\d+)\];)");
    static const std::regex label(R"((\$?\w+):)");
    std::smatch found;
    if (std::regex_match(line, found, entry)) {
      kernels_.push_back({.name = found[1]});
      registers_.clear();
      symbols_.clear();
      labels_.clear();
      jumps_.clear();
      inside_ = false;
    } else if (std::regex_match(line, found, parameter)) {
      const std::size_t element = type_of(std::string(found[1]))->bytes();
      const std::size_t bytes = element * (found[3].matched ? std::stoul(found[3]) : 1);
      add_symbol(found[2], kernel().parameter_bytes, bytes, element * (found[3].matched ? 8 : 1));
      kernel().parameters.push_back({kernel().parameter_bytes - bytes, bytes});
    } else if (std::regex_match(line, found, variable)) {
      add_symbol(found[3], found[1] == "shared" ? kernel().shared_bytes : kernel().local_bytes,
                 std::stoul(found[4]), std::stoul(found[2]));
    } else if (std::regex_match(line, found, label)) {
      labels_[found[1]] = static_cast<int>(kernel().code.size());
    } else if (line == "{") {
      inside_ = true;
    } else if (line == "}") {
      finish();
    } else if (inside_ && line.front() != '.' && line.back() == ';') {
      read_instruction(line.substr(0, line.size() - 1));
    } else if (line != ")" && line.front() != '.') {
      fail("not understood: " + line);
    }
  }

  Kernel& kernel() {
    if (kernels_.empty()) fail("outside of a kernel");
    return kernels_.back();
  }

  void add_symbol(const std::string& name, std::size_t& size, std::size_t bytes,
                  std::size_t alignment) {
    size = (size + alignment - 1) / alignment * alignment;
    symbols_[name] = size;
    size += bytes;
  }

  void finish() {
    for (const auto& [instruction, name] : jumps_) {
      const auto found = labels_.find(name);
      if (found == labels_.end()) fail("no label " + name + " in " + kernel().name);
      kernel().code[instruction].target = found->second;
    }
    kernel().registers = static_cast<int>(registers_.size());
    inside_ = false;
  }

  int register_of(const std::string& name) {
    return registers_.try_emplace(name, static_cast<int>(registers_.size())).first->second;
  }

  Operand operand(std::string text) {
    Operand result;
    if (text.front() == '[') {
      text = trimmed(text.substr(1, text.size() - 2));
      if (const auto plus = text.find('+'); plus != std::string::npos) {
        result.value = static_cast<std::uint64_t>(std::stoll(text.substr(plus + 1)));
        text = trimmed(text.substr(0, plus));
      }
    }
    static const std::vector<std::string> special = {"%tid.x", "%ntid.x", "%ctaid.x", "%nctaid.x"};
    if (const auto known = std::ranges::find(special, text); known != special.end()) {
      result.kind = Operand::Kind::kSpecial;
      result.index = static_cast<int>(known - special.begin());
    } else if (text.front() == '%') {
      if (text.find('.') != std::string::npos) fail("unknown special register " + text);
      result.kind = Operand::Kind::kRegister;
      result.index = register_of(text);
    } else if (text.starts_with("0f") || text.starts_with("0d")) {
      result.value = std::stoull(text.substr(2), nullptr, 16);
    } else if (text.front() == '-') {
      result.value = static_cast<std::uint64_t>(std::stoll(text));
    } else if (std::isdigit(static_cast<unsigned char>(text.front())) != 0) {
      result.value = std::stoull(text, nullptr, 0);
    } else if (const auto symbol = symbols_.find(text); symbol != symbols_.end()) {
      result.value += symbol->second;
    } else {
      fail("unknown symbol " + text);
    }
    return result;
  }

  std::vector<Operand> operands(const std::string& text) {
    if (text.front() != '{') return {operand(text)};
    std::vector<Operand> all;
    for (const auto& part : split_operands(text.substr(1, text.size() - 2)))
      all.push_back(operand(part));
    return all;
  }

  void read_modifier(Instruction& instruction, const std::string& word) {
    if (const auto comparison = kComparisons.find(word);
        instruction.op == Op::kSetp && comparison != kComparisons.end()) {
      instruction.comparison = comparison->second;
    } else if (const auto space = kSpaces.find(word); space != kSpaces.end()) {
      instruction.space = space->second;
    } else if (const auto type = type_of(word)) {
      (instruction.type.bits == 0 ? instruction.type : instruction.from) = *type;
    } else if (word == "wide") {
      instruction.wide = true;
    } else if (word == "hi") {
      instruction.high = true;
    } else if ((instruction.op == Op::kAtom || instruction.op == Op::kRed) && word == "add") {
      // The one such operation that is known.
    } else if (instruction.op == Op::kVote && word == "ballot") {
      // So is this one.
    } else if (instruction.op == Op::kShf && (word == "l" || word == "r")) {
      instruction.to_left = word == "l";
    } else if (word == "rzi") {
      instruction.truncates = true;
    } else if (std::ranges::find(kNeutral, word) == kNeutral.end()) {
      fail("unknown modifier ." + word);
    }
  }

  void read_instruction(std::string text) {
    Instruction instruction{.line = line_};
    if (text.front() == '@') {
      const auto space = text.find_first_of(" \t");
      instruction.negated = text[1] == '!';
      const std::size_t name = instruction.negated ? 2 : 1;
      instruction.predicate = register_of(text.substr(name, space - name));
      text = trimmed(text.substr(space));
    }
    const auto space = std::min(text.find_first_of(" \t"), text.size());
    std::istringstream words(text.substr(0, space));
    std::string word;
    std::getline(words, word, '.');
    const auto op = kOps.find(word);
    if (op == kOps.end()) fail("unknown instruction " + text.substr(0, space));
    instruction.op = op->second;
    while (std::getline(words, word, '.')) read_modifier(instruction, word);
    const std::string rest = trimmed(text.substr(space));
    if (instruction.op == Op::kBra) {
      jumps_.emplace_back(kernel().code.size(), rest);
    } else if (instruction.op != Op::kRet && instruction.op != Op::kBar) {
      const auto parts = split_operands(rest);
      if (parts.empty()) fail("no operands: " + text);
      instruction.results = operands(parts.front());
      for (std::size_t i = 1; i < parts.size(); ++i) {
        for (const Operand& one : operands(parts[i])) instruction.sources.push_back(one);
      }
    }
    kernel().code.push_back(std::move(instruction));
  }

  std::vector<Kernel> kernels_;
  // Of the kernel that is being read.
  std::map<std::string, int> registers_, labels_;
  std::map<std::string, std::size_t> symbols_;
  std::vector<std::pair<std::size_t, std::string>> jumps_;
  bool inside_ = false;
  int line_ = 0;
};

}  // namespace

std::vector<Kernel> parse(std::string_view text) {
  return Parser().parse(text);
}

std::vector<Kernel> without_barrier(std::vector<Kernel> kernels, std::string_view name,
                                    std::size_t instruction) {
  for (Kernel& kernel : kernels) {
    if (kernel.name != name) continue;
    kernel.code[instruction].op = Op::kBra;
    kernel.code[instruction].target = static_cast<int>(instruction) + 1;
  }
  return kernels;
}

}  // namespace thinwire::testing::ptx
