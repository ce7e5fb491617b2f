// What a job would gain with other settings, from the log of one short run.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "thinwire/comm/predict/scaled_link.h"
#include "thinwire/comm/predict/step_model.h"
#include "thinwire/launch/report/run_log.h"

namespace thinwire::launch {

// The network and the machines that the job is to have; what is left out is the log's.
struct AdvisedJob {
  int world = 0, hosts = 0;            // 0: the log's
  std::optional<double> rate = {};     // bits a second of a host's link
  std::optional<double> latency = {};  // seconds
  std::optional<double> cores = {};    // processors of a rank
  double burst_bytes = 0;              // see StepWork
  comm::Route route = comm::Route::kRing;
  double straggler = 0;                      // part by which the slowest rank computes longer
  std::optional<comm::LinkModel> link = {};  // a file of `thinwire link`
};

// Seconds per byte of a codec, where neither the log nor a link file has measured it.
using MeasureCodec = std::function<comm::CodecCost(const Codec&)>;

// A log with a profile and layers, taken apart. Throws InvalidArgument, naming the log and what to
// do, where it lacks something.
class Advisor {
 public:
  Advisor(const RunLog& log, AdvisedJob job, MeasureCodec measure);

  // One step with the layers' settings replaced by `setting` as make_plan() would: matrices of
  // min_numel elements and more. Throws InvalidArgument for a bad spec and for lgreco(...), whose
  // plan depends on gradients.
  comm::StepPrediction predict(const std::string& setting);
  // With the settings that the log's last plan has.
  comm::StepPrediction predict_logged();

  // Seconds of computing alone that a step of the log's has, found such that the model gives the
  // measured backward pass.
  double compute_seconds() const { return forward_ + backward_ + rest_; }
  int world() const { return job_.world; }
  int hosts() const { return job_.hosts; }
  const comm::BackendLink& link() const { return link_; }

 private:
  using SettingOf = std::function<std::string(const LoggedLayer&)>;
  comm::StepWork work(const SettingOf& setting_of, const comm::BackendLink& link, int world,
                      int hosts);
  comm::CodecCost cost_of(const Codec& codec);
  comm::NetworkSpeed asked_speed(comm::NetworkSpeed speed) const;
  void calibrate();
  void fit_bytes(double exposed);

  const RunLog& log_;
  AdvisedJob job_;
  MeasureCodec measure_;
  comm::BackendLink logged_link_, link_;
  double cores_ = 1;
  double forward_ = 0, backward_ = 0, rest_ = 0;
  std::vector<double> ready_;  // of every bucket, in parts of the backward pass
  std::map<std::string, comm::CodecCost> costs_;
};

// The settings that are compared where none are named.
std::vector<std::string> usual_settings(const RunLog& log);

}  // namespace thinwire::launch
