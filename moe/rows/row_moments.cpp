#include "thinwire/moe/rows/row_moments.h"

#include <ATen/ATen.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "thinwire/common/error.h"

namespace thinwire::moe {
namespace {

// Rows of one exchange that are looked at: with several exchanges and ranks there are soon more
// than dimensions, and the product stays small beside the experts'.
constexpr std::int64_t kSampleRows = 128;

// The first byte of a message.
constexpr auto kNoBasis = std::byte{0};
constexpr auto kMoving = std::byte{1};
constexpr auto kSettled = std::byte{2};
constexpr std::int64_t kHead = 1 + sizeof(float);

at::Tensor upper_triangle(std::int64_t dim) {
  const at::Tensor index = at::triu_indices(dim, dim);
  return index[0] * dim + index[1];
}

template <typename T>
std::byte* append(std::byte* out, const at::Tensor& values) {
  const at::Tensor data = values.contiguous();
  std::memcpy(out, data.const_data_ptr<T>(), data.nbytes());
  return out + data.nbytes();
}

template <typename T>
const std::byte* take(const std::byte* in, at::Tensor& values) {
  std::memcpy(values.mutable_data_ptr<T>(), in, values.nbytes());
  return in + values.nbytes();
}

}  // namespace

RowMoments::RowMoments(std::int64_t dim)
    : dim_(dim), sums_(at::zeros({1 + dim + dim * dim}, at::kDouble)) {}

double RowMoments::count() const {
  return sums_[0].item<double>();
}

void RowMoments::add(const at::Tensor& rows) {
  const std::int64_t count = rows.size(0);
  if (count == 0) return;
  const std::int64_t stride = (count + kSampleRows - 1) / kSampleRows;
  const at::Tensor sample = rows.slice(0, 0, count, stride).to(at::kCPU, at::kFloat);
  const at::Tensor norm = sample.to(at::kDouble).square().sum(1).sqrt();
  const at::Tensor good = at::isfinite(norm).logical_and(norm > 0).nonzero().squeeze(1);
  if (good.size(0) == 0) return;
  const at::Tensor unit =
      sample.index_select(0, good) / norm.index_select(0, good).unsqueeze(1).to(at::kFloat);
  sums_[0] += static_cast<double>(good.size(0));
  sums_.narrow(0, 1, dim_) += unit.sum(0, false, at::kDouble);
  sums_.narrow(0, 1 + dim_, dim_ * dim_) += at::mm(unit.t(), unit).reshape({-1}).to(at::kDouble);
}

void RowMoments::decay_and_add(double decay, const RowMoments& other) {
  sums_.mul_(decay).add_(other.sums_);
}

at::Tensor RowMoments::packed() const {
  return at::cat({sums_.narrow(0, 0, 1 + dim_),
                  sums_.narrow(0, 1 + dim_, dim_ * dim_).index_select(0, upper_triangle(dim_))})
      .to(at::kFloat);
}

RowMoments RowMoments::unpacked(const at::Tensor& packed, std::int64_t dim) {
  THINWIRE_ASSERT(packed.numel() == packed_size(dim));
  const at::Tensor values = packed.to(at::kDouble);
  RowMoments moments(dim);
  moments.sums_.narrow(0, 0, 1 + dim).copy_(values.narrow(0, 0, 1 + dim));
  at::Tensor upper = at::zeros({dim * dim}, at::kDouble);
  upper.index_copy_(0, upper_triangle(dim), values.narrow(0, 1 + dim, dim * (dim + 1) / 2));
  upper = upper.view({dim, dim});
  moments.sums_.narrow(0, 1 + dim, dim * dim).copy_((upper + upper.triu(1).t()).reshape({-1}));
  return moments;
}

at::Tensor RowMoments::mean() const {
  THINWIRE_ASSERT(count() > 0);
  return sums_.narrow(0, 1, dim_) / count();
}

at::Tensor RowMoments::mean_outer() const {
  THINWIRE_ASSERT(count() > 0);
  return sums_.narrow(0, 1 + dim_, dim_ * dim_).view({dim_, dim_}) / count();
}

double RowMoments::drift_from(const SpectralBasis& basis) const {
  return basis.expected_error(mean(), mean_outer()) /
         std::max(basis.expected_error(), std::numeric_limits<double>::min());
}

at::Tensor RowMoments::basis_message(const SpectralOptions& options, bool settled) const {
  const at::Tensor mean = this->mean();
  at::Tensor covariance = mean_outer() - at::outer(mean, mean);
  // Directions that few rows have not shown yet get some of the variance of the others.
  const double dim = static_cast<double>(dim_);
  const double share = dim / (dim + 10 * count());
  const double trace = covariance.diagonal().sum().item<double>();
  covariance =
      covariance * (1 - share) + at::eye(dim_, at::kDouble) * (share * std::max(trace, 0.0) / dim);
  const auto [ascending, columns] = at::linalg_eigh(covariance);
  const at::Tensor variance = ascending.flip(0).clamp_min(0).contiguous();
  const at::Tensor basis = columns.t().flip(0).contiguous();
  const auto* v = variance.const_data_ptr<double>();
  const auto bits = allocate_bits({v, v + dim_}, 8 * (spectral_row_bytes(options.bits, dim_) - 2));
  at::Tensor message = at::empty({basis_message_bytes(dim_)}, at::kByte);
  auto* out = static_cast<std::byte*>(message.mutable_data_ptr());
  *out = settled ? kSettled : kMoving;
  const auto asked = static_cast<float>(options.bits);
  std::memcpy(out + 1, &asked, sizeof(asked));
  out = append<float>(out + kHead, mean.to(at::kFloat));
  out = append<float>(out, variance.sqrt().to(at::kFloat));
  std::memcpy(out, bits.data(), bits.size());
  append<at::BFloat16>(out + bits.size(), basis.to(at::kBFloat16));
  return message;
}

std::int64_t basis_message_bytes(std::int64_t dim) {
  return kHead + dim * (4 + 4 + 1) + dim * dim * 2;
}

std::shared_ptr<const SpectralBasis> basis_of(const at::Tensor& message,
                                              const SpectralOptions& options, std::int64_t dim) {
  if (message.scalar_type() != at::kByte || message.numel() != basis_message_bytes(dim)) {
    throw FrameError(concat("a spectral basis for rows of width ", dim, " has ",
                            basis_message_bytes(dim), " bytes, got ", message.numel(),
                            " elements"));
  }
  const at::Tensor data = message.contiguous();
  const auto* in = static_cast<const std::byte*>(data.const_data_ptr());
  if (*in == kNoBasis) return nullptr;
  at::Tensor mean = at::empty({dim}, at::kFloat);
  at::Tensor deviation = at::empty({dim}, at::kFloat);
  at::Tensor basis = at::empty({dim, dim}, at::kBFloat16);
  in = take<float>(in + kHead, mean);
  in = take<float>(in, deviation);
  const auto* first = reinterpret_cast<const std::uint8_t*>(in);
  std::vector<std::uint8_t> bits(first, first + dim);
  take<at::BFloat16>(in + dim, basis);
  try {
    return std::make_shared<SpectralBasis>(mean, deviation, std::move(bits), basis.to(at::kFloat),
                                           spectral_row_bytes(options.bits, dim));
  } catch (const InvalidArgument& error) {
    throw FrameError(error.what());
  }
}

bool is_made_for(const at::Tensor& message, const SpectralOptions& options, std::int64_t dim) {
  if (message.scalar_type() != at::kByte || message.numel() != basis_message_bytes(dim)) {
    return false;
  }
  const at::Tensor data = message.contiguous();
  const auto* in = static_cast<const std::byte*>(data.const_data_ptr());
  float asked = 0;
  std::memcpy(&asked, in + 1, sizeof(asked));
  return *in != kNoBasis && asked == static_cast<float>(options.bits);
}

bool is_settled(const at::Tensor& message) {
  THINWIRE_ASSERT(message.numel() > 0);
  return static_cast<std::byte>(message[0].item<std::uint8_t>()) == kSettled;
}

}  // namespace thinwire::moe
