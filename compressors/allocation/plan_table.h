// Plans for people.
#pragma once

#include <string>

#include "thinwire/compressors/allocation/plan_file.h"

namespace thinwire::lgreco {

// "12,345 bytes instead of 45,678 (3.70x less), error 1.23 instead of 1.24"; the second numbers are
// the reference's totals. A plan made for time also tells its milliseconds, and one that fell back
// to the reference says so.
std::string plan_summary(const SolvedPlan& plan);

// One row a layer: name, elements, reference and choice with their bytes and errors; then the
// totals. Every line ends with a newline.
std::string plan_table(const SolvedPlan& plan);

}  // namespace thinwire::lgreco
