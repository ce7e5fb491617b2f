#include "thinwire/compressors/allocation/plan_table.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "thinwire/common/printable.h"
#include "thinwire/common/text.h"

namespace thinwire::lgreco {
namespace {

constexpr std::size_t kColumns = 9;
using Row = std::array<std::string, kColumns>;

// 4194304 -> "4,194,304"
std::string whole(double value) {
  const std::string digits = fixed_text(value, 0);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string error_text(double error) {
  return rounded_text(error, 4);
}

std::string ratio_text(double reference, double chosen) {
  return chosen > 0 ? fixed_text(reference / chosen, 2) + "x" : "-";
}

// Canonical specs carry every parameter; the table shows what tells candidates apart.
std::string brief(const std::string& spec) {
  const std::size_t end = spec.find(',');
  return end == std::string::npos ? spec : spec.substr(0, end) + ")";
}

Row row_of(const std::string& name, double numel, const std::string& reference,
           const std::string& chosen, const Totals& from, const Totals& to) {
  return {printable(name),   whole(numel),           printable(reference),
          whole(from.bytes), error_text(from.error), printable(chosen),
          whole(to.bytes),   error_text(to.error),   ratio_text(from.bytes, to.bytes)};
}

}  // namespace

std::string plan_summary(const SolvedPlan& plan) {
  const bool timed = plan.options.objective == Objective::kTime;
  std::string text =
      concat(whole(plan.chosen.bytes), " bytes instead of ", whole(plan.reference.bytes), " (",
             ratio_text(plan.reference.bytes, plan.chosen.bytes), " less)");
  if (timed) {
    text += concat(", ", rounded_text(1e3 * plan.chosen.seconds, 3), " ms instead of ",
                   rounded_text(1e3 * plan.reference.seconds, 3), " ms");
  }
  text += concat(", error ", error_text(plan.chosen.error), " instead of ",
                 error_text(plan.reference.error));
  if (plan.fell_back) text += "; the budget cannot be met, so this is the reference itself";
  return text;
}

std::string plan_table(const SolvedPlan& plan) {
  std::vector<Row> rows = {
      {"layer", "elements", "reference", "bytes", "error", "chosen", "bytes", "error", "saving"}};
  double numel = 0;
  for (const PlannedLayer& layer : plan.layers) {
    numel += static_cast<double>(layer.numel);
    rows.push_back(row_of(layer.name, static_cast<double>(layer.numel), brief(layer.reference.spec),
                          brief(layer.chosen.spec),
                          {layer.reference.bytes, layer.reference.error, 0},
                          {layer.chosen.bytes, layer.chosen.error, 0}));
  }
  rows.push_back(row_of("total", numel, "", "", plan.reference, plan.chosen));

  std::array<std::size_t, kColumns> widths{};
  for (const Row& row : rows) {
    for (std::size_t c = 0; c < kColumns; ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const Row& row : rows) {
    std::string line;
    for (std::size_t c = 0; c < kColumns; ++c) {
      const std::string padding(widths[c] - row[c].size(), ' ');
      const bool left = c == 0 || c == 2 || c == 5;
      line += (c > 0 ? "  " : "") + (left ? row[c] + padding : padding + row[c]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

}  // namespace thinwire::lgreco
