// Momentum correction: with sparse exchange, momentum has to be taken before the selection, or a
// coordinate that waits in the residual misses the momentum of the steps it waited.
//
//   velocity    u = momentum · u + gradient          (local, before compression)
//   corrected   v = v + u                            (nesterov: v + momentum · u + gradient)
//   sent        D(C(v))
//   afterwards  v = v − sent, and u = 0 where something was sent
//
// The last line is momentum factor masking: without it stale velocity pushes a coordinate on after
// its sum was sent. The optimiser must then run without momentum of its own. It takes the place of
// ErrorFeedback for a layer and has the same shape; v is the residual.
//
// Lin et al., "Deep gradient compression", ICLR 2018, algorithms 2 and 3.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace thinwire {

struct MomentumCorrectionOptions {
  double momentum = 0.9;  // in [0, 1)
  bool nesterov = false;
};

// The velocities and residuals of one rank, float32, in host memory. Not thread-safe: the
// communication thread owns it.
//
// A step is transactional: correct() changes nothing that a later correct() of the same layer would
// see; commit() stores the step, and only when the averaged result proved finite.
class MomentumCorrection {
 public:
  // Throws InvalidArgument for a momentum outside [0, 1).
  explicit MomentumCorrection(MomentumCorrectionOptions options = {});

  const MomentumCorrectionOptions& options() const { return options_; }

  // values (the gradient) becomes the corrected gradient v. Throws InvalidArgument if `values` has
  // another size than before.
  void correct(std::string_view name, std::span<float> values);
  // The same with options of the layer's own, in place of those of the constructor.
  void correct(std::string_view name, std::span<float> values,
               const MomentumCorrectionOptions& options);

  // Says that more was owed after correct(): `values` is what it gave and that. Throws
  // InvalidArgument as commit().
  void set_corrected(std::string_view name, std::span<const float> values);

  // Takes what correct() gave and what the codec made of it. Throws InvalidArgument without a
  // correct() of this layer since the last commit().
  void commit(std::string_view name, std::span<const float> corrected,
              std::span<const float> reconstruction);

  // The same for a difference that was taken already, residual = corrected − reconstruction, where
  // the corrected gradient is gone. Nothing was sent where it is the corrected gradient itself.
  void commit(std::string_view name, std::span<const float> residual);

  // Forgets a correct() whose step does not count. Nothing else depends on it: the next correct()
  // of the layer begins anew.
  void abandon(std::string_view name);

  // The stored residual, empty if the layer has none.
  std::span<const float> residual(std::string_view name) const;
  // Forgets the velocity and residual of one layer.
  void drop(std::string_view name);

  struct Layer {
    std::vector<float> velocity, residual;
    bool operator==(const Layer&) const = default;
  };
  // Bytes held, what waits for its commit() included.
  std::size_t bytes() const;

  // For checkpoints: every committed layer, in order of the names.
  using State = std::map<std::string, Layer, std::less<>>;
  const State& state() const { return layers_; }
  // Throws InvalidArgument where velocity and residual of a layer differ in size.
  void load_state(State state);
  void reset();

 private:
  // Velocity and corrected gradient of a layer between correct() and commit().
  struct Pending {
    std::vector<float> velocity, corrected;
  };
  using PendingLayers = std::map<std::string, Pending, std::less<>>;
  Pending& pending_of(std::string_view name);
  void set_aside(PendingLayers::iterator layer);

  MomentumCorrectionOptions options_;
  State layers_;
  PendingLayers pending_;
  // Memory of layers that were committed, for those to come: the names in them mean nothing.
  std::vector<PendingLayers::node_type> spare_;
};

// The density of a warm-up that begins at 1/4 and falls by the same factor each epoch until it is
// `target` at `warmup_epochs`: for 0.001 in 4 epochs 25, 6.3, 1.6, 0.4 and then 0.1 %. `epoch` may
// be fractional. A target above 1/4 is not ramped. Throws InvalidArgument for a target outside
// (0, 1], a negative epoch or negative warm-up.
double warmup_density(double target, double epoch, double warmup_epochs);

}  // namespace thinwire
