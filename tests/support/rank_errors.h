// What every rank says when a test makes them fail.
#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::testing {

// Runs `body` as run_ranks() does and returns the text of the ErrorType with which each rank left,
// "no error" for a rank that did not, in the order in which they left. Other errors are rethrown.
template <typename ErrorType>
std::vector<std::string> errors_of(int world, const std::function<void(RankContext&)>& body,
                                   const RankOptions& options = {}) {
  std::mutex mutex;
  std::vector<std::string> errors;
  run_ranks(
      world,
      [&](RankContext& ctx) {
        std::string text = "no error";
        try {
          body(ctx);
        } catch (const ErrorType& error) {
          text = error.what();
        }
        const std::lock_guard lock(mutex);
        errors.push_back(text);
      },
      options);
  return errors;
}

}  // namespace thinwire::testing
