// Error feedback: what one step's compression loses is added to the next step's gradient.
//
//   corrected = gradient + decay · residual
//   sent      = C(corrected)
//   residual  = corrected − D(sent)            (the local reconstruction)
//
// Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019, Algorithm 2. The residual
// subtracts this rank's own reconstruction; subtracting the averaged one keeps the mean right but
// lets every rank's residual random-walk.
//
// Residuals are keyed by the parameter's name, never by its place in a bucket, because buckets are
// rebuilt after the first step.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace thinwire {

struct ErrorFeedbackOptions {
  enum class Mode { kAuto, kOn, kOff };  // kAuto: on where the codec needs it
  Mode mode = Mode::kAuto;
  // Factor on the residual before it is added, in [0, 1].
  double decay = 1.0;
  // Residuals are dropped every so many steps; 0: never. The owner counts steps.
  std::int64_t reset_every = 0;
  // Whether a rank that encodes a mean once more keeps what that loses for the next mean, see
  // comm/average/memory/second_residual.h. kAuto: where the layer has a residual. Decay and reset
  // hold for both.
  Mode second_residual = Mode::kAuto;
};

// The residuals of one rank, float32, in memory of the host. Not thread-safe: the communication
// thread owns it.
//
// A step is transactional: correct() only reads the residual, and the owner calls commit() once the
// averaged result proved finite on all ranks, so that a step with NaN leaves residuals untouched.
class ErrorFeedback {
 public:
  // Throws InvalidArgument for options out of range.
  explicit ErrorFeedback(ErrorFeedbackOptions options = {});

  const ErrorFeedbackOptions& options() const { return options_; }

  // values += decay · residual of `name`; creates a zero residual at first use. Throws
  // InvalidArgument if `values` has another size than before.
  void correct(std::string_view name, std::span<float> values);
  // The same with options of the layer's own, in place of those of the constructor. Where `step` is
  // a multiple of reset_every the residual is not added; it stays until commit() replaces it.
  void correct(std::string_view name, std::span<float> values, const ErrorFeedbackOptions& options,
               std::int64_t step);

  // What correct() would add, `factor` · `residual`, for callers that add it themselves; an empty
  // residual where that is nothing. They may write the new one to `kept`, where the old one is, in
  // place of commit().
  struct Carried {
    std::span<const float> residual = {};
    float factor = 1;
    std::span<float> kept = {};
  };
  Carried carried(std::string_view name, std::size_t numel, const ErrorFeedbackOptions& options,
                  std::int64_t step);

  // residual of `name` = corrected − reconstruction. The three have the size of the layer, else
  // InvalidArgument. A layer with a non-finite difference keeps its residual.
  void commit(std::string_view name, std::span<const float> corrected,
              std::span<const float> reconstruction);

  // The same for a difference that was taken already. Takes the vector's memory and leaves that of
  // the earlier residual in it, for a copy would cost as much as encoding.
  void commit(std::string_view name, std::vector<float>& residual);

  // The stored residual, empty if the layer has none yet.
  std::span<const float> residual(std::string_view name) const;
  // The same, to be held in another way (memory/layer_bases.h).
  std::span<float> held(std::string_view name);

  // Forgets the residual of one layer.
  void drop(std::string_view name);

  // Bytes held.
  std::size_t bytes() const;

  // Drops all residuals (fp32 zeros afterwards).
  void reset();

  // For checkpoints: name and values of every residual, in order of the names.
  using State = std::map<std::string, std::vector<float>, std::less<>>;
  const State& state() const { return residuals_; }
  void load_state(State state) { residuals_ = std::move(state); }

 private:
  std::vector<float>& residual_of(std::string_view name, std::size_t numel);

  ErrorFeedbackOptions options_;
  State residuals_;
};

}  // namespace thinwire
