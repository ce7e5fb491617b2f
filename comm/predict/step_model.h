// A training step as discrete events: one thread that trains, one that communicates, a processor
// that they may have to share, and a link on which messages follow each other.
//
// All ranks are alike and begin each exchange together: what one of them does is what all do. A
// straggler is modelled by its own step, since the others wait for it in every exchange.
#pragma once

#include <vector>

#include "thinwire/comm/predict/exchange_ops.h"

namespace thinwire::comm {

struct PredictedBucket {
  double ready = 0;  // seconds of computing from the end of the forward pass to its last gradient
  ExchangeOps ops;
};

struct StepWork {
  // Seconds of one processor for the threads that train, when nothing else takes from it.
  double forward = 0;
  double backward = 0;  // the loss included
  double rest = 0;      // optimiser, data
  // Of processors that the rank has, over those that its training keeps busy. At 1 the
  // communication thread takes from the training; from 2 on it has one of its own.
  double cores = 1;
  std::vector<PredictedBucket> buckets = {};  // in the order in which they are ready
  double agreement = 0;  // seconds of the exchange at the end of a compressed step
  // Bytes that the link lets through at once before its rate counts, as a token bucket does, and
  // the rate at which it gets them back.
  double burst_bytes = 0;
  double burst_refill = 0;  // bytes a second
};

struct StepPrediction {
  double step = 0;        // seconds
  double backward = 0;    // from the end of the forward pass to the last gradient
  double exposed = 0;     // from there to the last mean
  double coding = 0;      // seconds of processor on the communication thread
  double network = 0;     // in which a message was on its way
  double sent_bytes = 0;  // of one rank
};

// One of many equal steps, each of which begins with what the one before has left of the link's
// burst. Deterministic; thread-safe.
StepPrediction predict_step(const StepWork& work);

}  // namespace thinwire::comm
