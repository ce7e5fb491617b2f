// The page of `thinwire report`.
#pragma once

#include <string>
#include <vector>

#include "thinwire/launch/report/run_log.h"
#include "thinwire/launch/report/trace.h"

namespace thinwire::launch {

// What the page draws, as JSON.
std::string report_data(const std::vector<RunLog>& runs, const std::vector<TraceStep>& traces);

// One HTML document with all that it needs: it asks for nothing from the network, and its content
// security policy would not let it.
std::string report_page(const std::vector<RunLog>& runs, const std::vector<TraceStep>& traces);

}  // namespace thinwire::launch
