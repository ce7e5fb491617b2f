#include "thinwire/launch/node_list.h"

#include <charconv>

#include "thinwire/common/error.h"

namespace thinwire::launch {
namespace {

constexpr std::size_t kMostHosts = 65536;

[[noreturn]] void fail(std::string_view kind, std::string_view text, const std::string& reason) {
  throw InvalidArgument(concat("bad Slurm ", kind, " '", text, "': ", reason));
}

[[noreturn]] void fail_nodes(std::string_view text, const std::string& reason) {
  fail("node list", text, reason);
}

unsigned long number(std::string_view kind, std::string_view text, std::string_view digits) {
  unsigned long value = 0;
  const char* const end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, value);
  // Nine digits keep every sum below from overflowing.
  if (error != std::errc() || stop != end || digits.size() > 9) {
    fail(kind, text, concat("expected a number, found '", digits, "'"));
  }
  return value;
}

// Cuts at the commas that are outside brackets.
std::vector<std::string_view> split(std::string_view text, std::string_view whole) {
  std::vector<std::string_view> parts;
  std::size_t begin = 0;
  bool inside = false;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    if (i == text.size() || (text[i] == ',' && !inside)) {
      if (i == begin) fail_nodes(whole, "a name or number is missing beside a comma");
      parts.push_back(text.substr(begin, i - begin));
      begin = i + 1;
    } else if (text[i] == '[' || text[i] == ']') {
      if (inside == (text[i] == '[')) fail_nodes(whole, "the brackets do not match");
      inside = text[i] == '[';
    }
  }
  if (inside) fail_nodes(whole, "the brackets do not match");
  return parts;
}

// "01-03,7" -> 01 02 03 7
std::vector<std::string> expand_ranges(std::string_view ranges, std::string_view whole) {
  std::vector<std::string> numbers;
  for (const std::string_view range : split(ranges, whole)) {
    const std::size_t dash = range.find('-');
    const std::string_view first_digits = range.substr(0, dash);
    const unsigned long first = number("node list", whole, first_digits);
    const unsigned long last =
        dash == std::string_view::npos ? first : number("node list", whole, range.substr(dash + 1));
    if (last < first) fail_nodes(whole, concat("the range '", range, "' runs backwards"));
    if (last - first >= kMostHosts) fail_nodes(whole, "more than 65536 hosts");
    for (unsigned long i = first; i <= last; ++i) {
      std::string digits = std::to_string(i);
      if (digits.size() < first_digits.size()) {
        digits.insert(0, first_digits.size() - digits.size(), '0');
      }
      numbers.push_back(std::move(digits));
    }
  }
  return numbers;
}

// Every host of one name, which may hold brackets.
std::vector<std::string> expand_name(std::string_view name, std::string_view whole) {
  std::vector<std::string> hosts = {""};
  while (!name.empty()) {
    const std::size_t open = name.find('[');
    for (auto& host : hosts) host += name.substr(0, open);
    if (open == std::string_view::npos) break;
    const std::size_t close = name.find(']', open);
    const auto numbers = expand_ranges(name.substr(open + 1, close - open - 1), whole);
    if (hosts.size() * numbers.size() > kMostHosts) fail_nodes(whole, "more than 65536 hosts");
    std::vector<std::string> longer;
    for (const auto& host : hosts) {
      for (const auto& digits : numbers) longer.push_back(host + digits);
    }
    hosts = std::move(longer);
    name.remove_prefix(close + 1);
  }
  return hosts;
}

}  // namespace

std::vector<std::string> expand_node_list(std::string_view text) {
  std::vector<std::string> hosts;
  for (const std::string_view name : split(text, text)) {
    for (auto& host : expand_name(name, text)) hosts.push_back(std::move(host));
    if (hosts.size() > kMostHosts) fail_nodes(text, "more than 65536 hosts");
  }
  return hosts;
}

std::vector<int> expand_tasks_per_node(std::string_view text) {
  constexpr std::string_view kKind = "list of tasks per node";
  std::vector<int> tasks;
  std::string_view rest = text;
  while (true) {
    const std::string_view item = rest.substr(0, rest.find(','));
    const std::size_t open = item.find("(x");
    unsigned long times = 1;
    if (open != std::string_view::npos) {
      if (!item.ends_with(')')) fail(kKind, text, "expected ')' after a repetition");
      times = number(kKind, text, item.substr(open + 2, item.size() - open - 3));
    }
    const auto count = static_cast<int>(number(kKind, text, item.substr(0, open)));
    if (tasks.size() + times > kMostHosts) fail(kKind, text, "more than 65536 hosts");
    tasks.insert(tasks.end(), times, count);
    if (item.size() == rest.size()) return tasks;
    rest.remove_prefix(item.size() + 1);
  }
}

}  // namespace thinwire::launch
