// What training examples log beside their losses, for `thinwire report` and `thinwire advise`:
//
//   {"event":"start","backend":…,"compression":…,"world_size":…,"hosts":…,"local_size":…,
//    "model":…,"batch_size":…,"threads":…,"cores":…,"min_numel":…,"parameters":…}
//   {"event":"link","model":{…}}                       as `thinwire link` writes it
//   {"event":"layers","step":…,"layers":[{"name":…,"shape":[…],"setting":…,"bytes":…,
//    "payload_bytes":…,"relative_error":…},…]}         see LayerReport
//   {"event":"profile","step":…,"steps":…,"step_seconds":…,"forward_seconds":…,…,"buckets":[…]}
//                                                      see StepProfile
#pragma once

#include <string>
#include <vector>

#include "thinwire/comm/link/link_model.h"
#include "thinwire/common/metrics.h"
#include "thinwire/launch/world.h"
#include "thinwire/torch_ext/ddp/layer_report.h"
#include "thinwire/torch_ext/ddp/step_profile.h"

namespace thinwire::examples {

struct RunStart {
  std::string compression, model;
  std::int64_t batch_size = 0;  // of one rank
  std::int64_t min_numel = 0;
  std::int64_t parameters = 0;
};

void log_start(MetricsLog& log, const launch::World& world, const RunStart& start);
void log_link(MetricsLog& log, const comm::LinkModel& model);
void log_layers(MetricsLog& log, std::int64_t step, const std::vector<LayerReport>& layers);
void log_profile(MetricsLog& log, std::int64_t step, const StepProfile& profile);

// The link between the ranks and the speed of some codecs: a second or two, more on slow links.
// Collective; with one rank the codecs alone.
comm::LinkModel measure_link(const launch::World& world, const std::string& compression);

}  // namespace thinwire::examples
