#include "thinwire/comm/average/memory/error_feedback.h"

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire {

ErrorFeedback::ErrorFeedback(ErrorFeedbackOptions options) : options_(options) {
  check(options.decay >= 0.0 && options.decay <= 1.0,
        "error feedback: decay must be in [0, 1], got ", options.decay);
  check(options.reset_every >= 0, "error feedback: reset_every must not be negative, got ",
        options.reset_every);
}

std::vector<float>& ErrorFeedback::residual_of(std::string_view name, std::size_t numel) {
  auto found = residuals_.find(name);
  if (found == residuals_.end()) {
    found = residuals_.emplace(name, std::vector<float>(numel)).first;
  }
  check(found->second.size() == numel, "error feedback: layer '", name, "' has ", numel,
        " elements, but its residual has ", found->second.size());
  return found->second;
}

void ErrorFeedback::correct(std::string_view name, std::span<float> values) {
  correct(name, values, options_, /*step=*/1);
}

void ErrorFeedback::correct(std::string_view name, std::span<float> values,
                            const ErrorFeedbackOptions& options, std::int64_t step) {
  const Carried owed = carried(name, values.size(), options, step);
  if (owed.residual.empty()) return;
  kernels::add_scaled(values.data(), owed.residual.data(), owed.factor, values);
}

ErrorFeedback::Carried ErrorFeedback::carried(std::string_view name, std::size_t numel,
                                              const ErrorFeedbackOptions& options,
                                              std::int64_t step) {
  std::vector<float>& residual = residual_of(name, numel);
  // Left out, not forgotten: that is for commit(), once the step has proved finite.
  if (options.reset_every > 0 && step % options.reset_every == 0) return {.kept = residual};
  return {residual, static_cast<float>(options.decay), residual};
}

void ErrorFeedback::commit(std::string_view name, std::span<const float> corrected,
                           std::span<const float> reconstruction) {
  check(corrected.size() == reconstruction.size(), "error feedback: layer '", name, "' has ",
        corrected.size(), " elements, but its reconstruction has ", reconstruction.size());
  std::vector<float> residual(corrected.size());
  kernels::add_scaled(corrected.data(), reconstruction.data(), -1, residual);
  commit(name, residual);
}

void ErrorFeedback::commit(std::string_view name, std::vector<float>& residual) {
  if (kernels::all_finite(residual)) residual_of(name, residual.size()).swap(residual);
}

std::size_t ErrorFeedback::bytes() const {
  std::size_t bytes = 0;
  for (const auto& [name, residual] : residuals_) bytes += residual.capacity() * sizeof(float);
  return bytes;
}

std::span<const float> ErrorFeedback::residual(std::string_view name) const {
  const auto found = residuals_.find(name);
  return found == residuals_.end() ? std::span<const float>{} : found->second;
}

std::span<float> ErrorFeedback::held(std::string_view name) {
  const auto found = residuals_.find(name);
  return found == residuals_.end() ? std::span<float>{} : found->second;
}

void ErrorFeedback::drop(std::string_view name) {
  const auto found = residuals_.find(name);
  if (found != residuals_.end()) residuals_.erase(found);
}

void ErrorFeedback::reset() {
  for (auto& [name, residual] : residuals_) residual.assign(residual.size(), 0.0f);
}

}  // namespace thinwire
