#include "thinwire/launch/cli/bench/link_measurement.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/common/env.h"

namespace thinwire::launch {

comm::LinkModel measure_link(const World& world, const LinkMeasurement& measurement) {
  comm::LinkModel model;
  model.world = world.size();
  model.hosts = world.hosts();
  if (world.size() > 1) {
    model.backends[world.backend()] = comm::probe_backend(*world.group(), measurement.probe);
    for (const std::string& name : measurement.more_backends) {
      if (model.backends.contains(name)) continue;
      comm::ProcessGroupOptions options;
      options.timeout = Env::get().timeout;
      const auto group = comm::make_process_group(
          name, c10::make_intrusive<c10d::PrefixStore>("link/" + name, world.store()), world.rank(),
          world.size(), options);
      model.backends[name] = comm::probe_backend(*group, measurement.probe);
    }
  }
  for (const CodecPtr& codec : measurement.codecs) {
    model.codecs[codec->spec()] = comm::probe_codec(*world.group(), *codec);
  }
  return model;
}

}  // namespace thinwire::launch
