// Groups over MPI, made of the ranks of a test's job.
#pragma once

#include <gtest/gtest.h>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/tests/support/mpi_ranks.h"

namespace thinwire::testing {

using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;

inline std::int64_t sum_over(c10d::ProcessGroup& group, std::int64_t mine) {
  std::vector<at::Tensor> tensors = {at::full({1}, mine, at::kLong)};
  comm::wait(group, group.allreduce(tensors), "the sum", 0);
  return tensors[0].item<std::int64_t>();
}

class MpiGroups : public ::testing::Test {
 protected:
  MpiRanks& ranks_ = MpiRanks::get();
  const int rank_ = ranks_.rank, size_ = ranks_.size;

  c10::intrusive_ptr<c10d::Store> part_of_store(const std::string& name) {
    return c10::make_intrusive<c10d::PrefixStore>(name, ranks_.store);
  }
  GroupPtr all(const std::string& name) {
    return comm::make_process_group("mpi", part_of_store(name), rank_, size_,
                                    {.timeout = std::chrono::seconds(30)});
  }
};

}  // namespace thinwire::testing
