// Finding the tensors in the result of a module's forward().
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace thinwire::detail {

// Calls `visit` with every defined tensor in `value`: a tensor, or a container, map, pair, tuple or
// optional of what holds tensors; numbers and texts hold none. For a type of one's own, a function
// `visit_tensors(MyType&, const Visit&)` beside it is found by its argument.
using Visit = std::function<void(at::Tensor&)>;

inline void visit_tensors(at::Tensor& tensor, const Visit& visit) {
  if (tensor.defined()) visit(tensor);
}

template <typename Item>
requires std::is_arithmetic_v<Item> || std::is_enum_v<Item> ||
    std::is_same_v<std::remove_const_t<Item>, std::string>
void visit_tensors(Item&, const Visit&) {}

// Declared before they are defined, as each may hold the others.
template <typename Item>
void visit_tensors(std::optional<Item>& optional, const Visit& visit);
template <typename First, typename Second>
void visit_tensors(std::pair<First, Second>& pair, const Visit& visit);
template <typename... Items>
void visit_tensors(std::tuple<Items...>& items, const Visit& visit);
template <typename Range>
requires requires(Range& range) {
  range.begin(), range.end();
} &&(!std::is_same_v<std::remove_const_t<Range>, std::string>)void visit_tensors(
    Range& range, const Visit& visit);

template <typename Item>
void visit_tensors(std::optional<Item>& optional, const Visit& visit) {
  if (optional) visit_tensors(*optional, visit);
}
template <typename First, typename Second>
void visit_tensors(std::pair<First, Second>& pair, const Visit& visit) {
  visit_tensors(pair.first, visit);
  visit_tensors(pair.second, visit);
}
template <typename... Items>
void visit_tensors(std::tuple<Items...>& items, const Visit& visit) {
  std::apply([&](auto&... item) { (visit_tensors(item, visit), ...); }, items);
}
template <typename Range>
requires requires(Range& range) {
  range.begin(), range.end();
} &&(!std::is_same_v<std::remove_const_t<Range>, std::string>)void visit_tensors(
    Range& range, const Visit& visit) {
  for (auto&& item : range) visit_tensors(item, visit);
}

template <typename Other>
concept HoldsTensors = requires(Other& other, const Visit& visit) {
  visit_tensors(other, visit);
};

template <HoldsTensors Result>
std::vector<at::Tensor*> tensors_in(Result& result) {
  std::vector<at::Tensor*> found;
  visit_tensors(result, [&](at::Tensor& tensor) { found.push_back(&tensor); });
  return found;
}

}  // namespace thinwire::detail
