// Which setting each layer of a model is best off with, where one for all of them has been found:
// the part of `auto` that reckons by layer.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

namespace thinwire {

// What a search of `auto` knows of a training, with settings by their places in its ladder, which
// begins with no compression. The same on all ranks.
//
// One setting for all hides behind the backward pass or does not, and the last of what it hides
// decides for all. Yet gradients that are ready early have time to travel as they are, and a layer
// that loses little may pay for one that loses much. So, with what the trials have measured:
//
//   A bucket of bytes n takes the communication thread n · s[i] seconds with setting i, where s[i]
//   is what all buckets of the trial took. Buckets follow each other, none begins before its last
//   gradient is there: averaging ends at the latest of ready[b] + seconds of b and all after it.
//   The layers of b and all after it have the time from ready[b] to the end, therefore; the end is
//   that of the uniform setting, or later where that still counts as hidden. Of the time by which
//   that exceeds what they take with the uniform setting, a `share` is given away.
//
//   L-GreCo's allocator (compressors/allocation/allocator.h) gives the layers the settings with the
//   least squared error in that time, docs/lgreco.md's best measure: first all of them in the time
//   from ready[0]. Where those of the buckets from b on then take more than they have, these are
//   chosen for alone, and the others get what is left.
//
// No layer gets a setting behind the uniform one, so that the ceiling of the error holds for each.
// What is measured is no promise: what comes out is one more trial, see AutomaticChoice.
struct LayerTask {
  struct Bucket {
    double ready = 0;        // seconds after the forward pass
    double other_bytes = 0;  // of layers that are not chosen for
  };
  struct Layer {
    std::size_t bucket = 0;
    double bytes = 0;  // of the gradient, uncompressed
    // By setting, up to the uniform one; infinite where the gradient was not finite, and zero with
    // the uniform setting where nothing was seen of it: such a layer keeps that setting.
    std::vector<double> squared_errors = {};
  };
  std::size_t uniform = 0;
  // By setting; none of those that were not tried, which no layer gets. That of the uniform one is
  // there.
  std::vector<std::optional<double>> seconds_per_byte = {};
  std::vector<Bucket> buckets = {};  // in the order in which they are averaged
  std::vector<Layer> layers = {};
};

// When averaging ends with these settings, in seconds after the forward pass. Pure.
double predicted_end(const LayerTask& task, const std::vector<std::size_t>& settings);

// The sum over the layers that were seen. Pure.
double squared_error(const LayerTask& task, const std::vector<std::size_t>& settings);

// The setting of each layer; `share` from 0 to 1. Deterministic, thread-safe.
std::vector<std::size_t> choose_by_layer(const LayerTask& task, double share);

}  // namespace thinwire
