// Tests that run under every schedule of the fake device.
#pragma once

#include <gtest/gtest.h>

#include "thinwire/tests/support/fake_gpu/fake_gpu.h"

namespace thinwire::testing {

class EverySchedule : public ::testing::TestWithParam<fake_gpu::Schedule> {
 protected:
  EverySchedule() { fake_gpu::set_schedule(GetParam()); }
};

inline std::string name_of_schedule(const ::testing::TestParamInfo<fake_gpu::Schedule>& tested) {
  return fake_gpu::name_of(tested.param);
}

}  // namespace thinwire::testing
