#include "thinwire/torch_ext/ddp/layer_report.h"

#include <cmath>
#include <limits>
#include <span>

#include "thinwire/compressors/allocation/low_rank_energy.h"
#include "thinwire/compressors/codecs/powersgd.h"

namespace thinwire {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

double squared_norm(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return sum;
}

// Fills payload_bytes and relative_error.
void encode(LayerReport& report, const Codec& codec, std::span<const float> values) {
  const auto numel = static_cast<std::int64_t>(values.size());
  const double norm = squared_norm(values);
  const bool tells = norm > 0 && std::isfinite(norm);
  const CodecFacts facts = codec.facts();
  if (facts.form == CodecFacts::Form::kLowRank) {
    const LowRankShape shape = low_rank_shape(report.shape, DType::kFloat32, facts.rank);
    if (shape.rank == 0) return;  // travels as it is
    report.payload_bytes =
        static_cast<double>(factor_bytes(shape, *facts.factors)) * facts.iterations;
    if (!tells) return;
    const std::int64_t ranks[] = {shape.rank};
    const auto left = lgreco::low_rank_squared_errors(values, shape.rows, shape.cols, ranks);
    report.relative_error = std::sqrt(left.front() / norm);
    return;
  }
  std::vector<std::byte> payload(codec.max_compressed_bytes(numel, DType::kFloat32));
  std::vector<float> decoded(values.size());
  ConstTensorView input = view_of(values);
  input.shape = report.shape;
  TensorView output = view_of(std::span(decoded));
  output.shape = report.shape;
  report.payload_bytes =
      static_cast<double>(codec.compress_and_reconstruct(input, RandomKey{}, payload, output));
  for (std::size_t i = 0; i < values.size(); ++i) decoded[i] = values[i] - decoded[i];
  if (tells) report.relative_error = std::sqrt(squared_norm(decoded) / norm);
}

}  // namespace

std::vector<LayerReport> report_layers(
    const std::vector<std::pair<std::string, at::Tensor>>& gradients, const comm::Plan& plan) {
  std::vector<LayerReport> reports;
  for (const auto& [name, gradient] : gradients) {
    const comm::LayerSetting& setting = plan.of(name);
    LayerReport report;
    report.name = name;
    report.setting = setting.spec();
    report.relative_error = kUnknown;
    if (gradient.defined()) {
      report.shape = gradient.sizes().vec();
      report.bytes = static_cast<std::int64_t>(gradient.nbytes());
      report.payload_bytes = static_cast<double>(report.bytes);
      if (!setting.codec) {
        report.relative_error = 0;
      } else if (gradient.is_floating_point()) {
        const at::Tensor values = gradient.detach().to(at::kFloat).contiguous();
        encode(report, *setting.codec,
               {values.const_data_ptr<float>(), static_cast<std::size_t>(values.numel())});
      }
    }
    reports.push_back(std::move(report));
  }
  return reports;
}

}  // namespace thinwire
