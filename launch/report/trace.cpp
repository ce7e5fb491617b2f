#include "thinwire/launch/report/trace.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "thinwire/common/error.h"
#include "thinwire/common/json.h"

namespace thinwire::launch {
namespace {

constexpr std::string_view kTraining = "training";
// Where no step is marked.
constexpr std::size_t kLastSpans = 60;

// The spans of the first process, by begin, in seconds since whenever the trace counts from.
std::vector<TraceSpan> read_spans(const nlohmann::json& document, const std::string& source) {
  const JsonPlace root(document, source);
  std::map<std::uint64_t, std::string> tracks;
  std::vector<std::pair<std::uint64_t, TraceSpan>> found;
  std::optional<std::uint64_t> process;
  // Microseconds since 1970 would leave no room for nanoseconds in a double.
  std::optional<double> first;
  for (std::size_t i = 0; i < root.size(); ++i) {
    const JsonPlace event = root.at(i);
    const std::string kind = event.at("ph").text();
    const std::uint64_t pid = event.at("pid").whole(), tid = event.at("tid").whole();
    if (!process) process = pid;
    if (pid != *process) continue;
    if (kind == "M" && event.at("name").text() == "thread_name") {
      tracks[tid] = event.at("args").at("name").text();
    }
    if (kind != "X") continue;
    if (!first) first = event.at("ts").number();
    const double begin = 1e-6 * (event.at("ts").number() - *first);
    TraceSpan span{.phase = event.at("name").text(),
                   .begin = begin,
                   .end = begin + 1e-6 * event.at("dur").number()};
    if (event.has("args") && event.at("args").has("bytes")) {
      span.bytes = static_cast<std::int64_t>(event.at("args").at("bytes").whole());
    }
    found.emplace_back(tid, std::move(span));
  }
  std::vector<TraceSpan> spans;
  for (auto& [tid, span] : found) {
    span.track = tracks.contains(tid) ? tracks[tid] : concat("thread ", tid);
    spans.push_back(std::move(span));
  }
  std::ranges::stable_sort(spans, {}, &TraceSpan::begin);
  return spans;
}

struct Window {
  double begin = 0, backward_end = 0, end = 0;
};

// From the beginning of a forward pass (or where that is not known, of the backward pass) to the
// last mean.
std::vector<Window> windows_of(const std::vector<TraceSpan>& spans) {
  std::vector<Window> windows;
  constexpr double kNone = -1;
  double begin = kNone;
  for (const TraceSpan& span : spans) {
    if (span.track != kTraining) continue;
    if (span.phase == "FORWARD" || (span.phase == "BACKWARD" && begin == kNone)) begin = span.begin;
    if (span.phase != "WAIT" || begin == kNone) continue;
    windows.push_back({begin, span.begin, span.end});
    begin = kNone;
  }
  return windows;
}

// Seconds within [from, to] that spans other than QUEUE and those of the training cover.
double busy(const std::vector<TraceSpan>& spans, double from, double to) {
  double seconds = 0, covered = from;
  for (const TraceSpan& span : spans) {
    if (span.track == kTraining || span.phase == "QUEUE") continue;
    const double begin = std::max(span.begin, covered), end = std::min(span.end, to);
    if (end <= begin) continue;
    seconds += end - begin;
    covered = end;
  }
  return seconds;
}

}  // namespace

TraceStep parse_trace(std::string_view text, const std::string& source) {
  const nlohmann::json document = parse_json(text, source);
  std::vector<TraceSpan> spans = read_spans(document, source);
  if (spans.empty()) throw FileError(concat(source, ": a timeline without a span"));
  TraceStep step{.name = std::filesystem::path(source).stem().string()};
  std::vector<Window> windows = windows_of(spans);
  step.steps = static_cast<int>(windows.size());
  Window window;
  if (windows.empty()) {
    if (spans.size() > kLastSpans) spans.erase(spans.begin(), spans.end() - kLastSpans);
    window.begin = spans.front().begin;
    for (const TraceSpan& span : spans) window.end = std::max(window.end, span.end);
    window.backward_end = window.begin;
  } else {
    const auto middle = windows.begin() + static_cast<std::ptrdiff_t>(windows.size() / 2);
    std::ranges::nth_element(windows, middle, {},
                             [](const Window& each) { return each.end - each.begin; });
    window = *middle;
  }
  for (TraceSpan& span : spans) {
    if (span.end < window.begin || span.begin >= window.end) continue;
    span.begin = std::max(0.0, span.begin - window.begin);
    span.end = std::min(window.end, span.end) - window.begin;
    step.spans.push_back(std::move(span));
  }
  step.seconds = window.end - window.begin;
  step.backward_end = window.backward_end - window.begin;
  step.hidden = busy(step.spans, 0, step.backward_end);
  step.exposed = busy(step.spans, step.backward_end, step.seconds);
  return step;
}

}  // namespace thinwire::launch
