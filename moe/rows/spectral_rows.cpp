#include "thinwire/moe/rows/spectral_rows.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <queue>

#include "thinwire/common/error.h"
#include "thinwire/moe/rows/spectral_levels.h"

namespace thinwire::moe {
namespace {

constexpr std::int64_t kScaleBytes = 2;
constexpr std::int64_t kSpectralGrain = 32;  // rows of one task

// Upper half of a float32, rounded to nearest even; what is finite stays finite.
std::uint16_t narrow_scale(double scale) {
  if (std::isnan(scale)) return 0x7FC0;
  constexpr double kLargest = 3.3895313892515355e38;  // of bfloat16
  const auto value = static_cast<float>(std::clamp(scale, -kLargest, kLargest));
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float widen_scale(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Appends and takes fields of a few bits, lowest bit first. Both move whole words of 32 bits: the
// memory behind the last field must have kPadding bytes more.
constexpr std::size_t kPadding = sizeof(std::uint64_t);

class BitWriter {
 public:
  explicit BitWriter(std::byte* out) : out_(out) {}
  void put(std::uint32_t value, int bits) {
    word_ |= static_cast<std::uint64_t>(value) << used_;
    used_ += bits;
    if (used_ < 32) return;
    store();
    word_ >>= 32;
    used_ -= 32;
  }
  void finish() { store(); }

 private:
  void store() {
    const auto low = static_cast<std::uint32_t>(word_);
    std::memcpy(out_, &low, sizeof(low));
    out_ += sizeof(low);
  }

  std::byte* out_;
  std::uint64_t word_ = 0;
  int used_ = 0;
};

class BitReader {
 public:
  explicit BitReader(const std::byte* in) : in_(in) {}
  std::uint32_t take(int bits) {
    if (used_ < bits) {
      std::uint32_t next = 0;
      std::memcpy(&next, in_, sizeof(next));
      in_ += sizeof(next);
      word_ |= static_cast<std::uint64_t>(next) << used_;
      used_ += 32;
    }
    const auto value = static_cast<std::uint32_t>(word_) & ((1u << bits) - 1);
    word_ >>= bits;
    used_ -= bits;
    return value;
  }

 private:
  const std::byte* in_;
  std::uint64_t word_ = 0;
  int used_ = 0;
};
static_assert(std::endian::native == std::endian::little, "fields lie lowest byte first");

// Σ a[j] b[j] in double precision.
double dot(const float* a, const float* b, std::size_t count) {
  double sum[4] = {};
  std::size_t j = 0;
  for (; j + 4 <= count; j += 4) {
    for (std::size_t k = 0; k < 4; ++k) sum[k] += static_cast<double>(a[j + k]) * b[j + k];
  }
  for (; j < count; ++j) sum[0] += static_cast<double>(a[j]) * b[j];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// code[j] = how many thresholds lie below c[j].
void quantise(const float* c, std::int32_t* code, std::size_t count, int bits) {
  const auto thresholds = thresholds_of(bits);
  if (bits <= 2) {
    for (std::size_t j = 0; j < count; ++j) code[j] = c[j] > thresholds[0];
    for (const float threshold : thresholds.subspan(1)) {
      for (std::size_t j = 0; j < count; ++j) code[j] += c[j] > threshold;
    }
    return;
  }
  // By halves, all components at once: the code's bits from the highest down.
  const float* const table = thresholds.data();
  for (std::size_t j = 0; j < count; ++j) code[j] = 0;
  for (std::int32_t step = 1 << (bits - 1); step > 0; step >>= 1) {
    for (std::size_t j = 0; j < count; ++j) {
      code[j] += c[j] > table[code[j] + step - 1] ? step : 0;
    }
  }
}

}  // namespace

SpectralOptions parse_spectral(const Spec& spec) {
  SpectralOptions options;
  SpecReader read(spec);
  options.bits = read.number("bits", options.bits, 0.1, kMostLevelBits);
  options.refresh = read.integer("refresh", options.refresh, 1, 1 << 30);
  options.drift = read.number("drift", options.drift, 1, 1e30);
  options.start = read.text("start", options.start);
  options.entropy = read.choice("coding", {"levels", "entropy"}, 0) == 1;
  read.finish();
  return options;
}

std::string spec_of(const SpectralOptions& options) {
  return concat("spectral(bits=", options.bits, ", refresh=", options.refresh,
                ", drift=", options.drift, ", start=", options.start,
                ", coding=", options.entropy ? "entropy)" : "levels)");
}

std::int64_t spectral_row_bytes(double bits, std::int64_t dim) {
  return std::max<std::int64_t>(kScaleBytes + 1,
                                static_cast<std::int64_t>(static_cast<double>(dim) * bits / 8));
}

std::vector<std::uint8_t> allocate_bits(const std::vector<double>& variance, std::int64_t budget) {
  std::vector<std::uint8_t> bits(variance.size(), 0);
  const auto gain = [&](std::size_t j) {
    const int b = bits[j];
    return b == kMostLevelBits ? 0 : variance[j] * (kLevelDistortion[b] - kLevelDistortion[b + 1]);
  };
  const auto worse = [](const std::pair<double, std::size_t>& a,
                        const std::pair<double, std::size_t>& b) {
    return a.first != b.first ? a.first < b.first : a.second > b.second;
  };
  std::priority_queue<std::pair<double, std::size_t>, std::vector<std::pair<double, std::size_t>>,
                      decltype(worse)>
      queue(worse);
  for (std::size_t j = 0; j < variance.size(); ++j) queue.emplace(gain(j), j);
  for (; budget > 0 && !queue.empty(); --budget) {
    const auto [best, j] = queue.top();
    if (!(best > 0)) break;
    queue.pop();
    ++bits[j];
    queue.emplace(gain(j), j);
  }
  return bits;
}

SpectralBasis::SpectralBasis(const at::Tensor& mean, const at::Tensor& deviation,
                             std::vector<std::uint8_t> bits, const at::Tensor& basis,
                             std::int64_t row_bytes)
    : row_bytes_(row_bytes),
      bits_(std::move(bits)),
      mean_(mean.contiguous()),
      axes_(basis.contiguous()),
      deviations_(deviation.contiguous()) {
  const std::int64_t dim = mean.numel();
  check(mean.dim() == 1 && deviation.sizes() == mean.sizes() &&
            static_cast<std::int64_t>(bits_.size()) == dim &&
            basis.sizes() == at::IntArrayRef({dim, dim}),
        "a spectral basis of ", dim, " dimensions got deviations ", deviation.sizes(), ", ",
        bits_.size(), " numbers of bits and a matrix ", basis.sizes());
  const auto total = std::accumulate(bits_.begin(), bits_.end(), std::int64_t{0});
  check(total <= 8 * (row_bytes - kScaleBytes) &&
            std::all_of(bits_.begin(), bits_.end(), [](int b) { return b <= kMostLevelBits; }),
        "a spectral basis of ", total, " bits does not fit rows of ", row_bytes, " bytes");
  mean_in_basis_ = at::mv(axes_, mean_);
  // Components with equal bits side by side.
  std::vector<std::int64_t> used;
  for (std::int64_t j = 0; j < dim; ++j) {
    if (bits_[static_cast<std::size_t>(j)] > 0) used.push_back(j);
  }
  const auto bits_at = [&](std::int64_t j) { return bits_[static_cast<std::size_t>(j)]; };
  std::stable_sort(used.begin(), used.end(),
                   [&](auto a, auto b) { return bits_at(a) > bits_at(b); });
  for (std::size_t i = 0; i < used.size(); ++i) {
    if (groups_.empty() || groups_.back().bits != bits_at(used[i])) {
      groups_.push_back({bits_at(used[i]), i, i});
    }
    groups_.back().end = i + 1;
    deviation_.push_back(deviation[used[i]].item<float>());
    inverse_deviation_.push_back(1 / deviation_.back());
  }
  const at::Tensor index = at::tensor(used, at::kLong);
  const at::Tensor axes = basis.index_select(0, index);
  expand_ = at::cat({axes, mean_.unsqueeze(0)}).contiguous();
  project_ = expand_.t().contiguous();
  const at::Tensor offset = at::mv(axes, mean_).contiguous();
  offset_.assign(offset.const_data_ptr<float>(), offset.const_data_ptr<float>() + offset.numel());
  mean_square_ = mean_.to(at::kDouble).square().sum().item<double>();
  const at::Tensor variance = deviation.to(at::kDouble).square();
  expected_error_ = error_of(variance.sum().item<double>(), variance.index_select(0, index));
}

double SpectralBasis::error_of(double total, const at::Tensor& variance) const {
  double square = total;  // of the components without bits, and what the others keep of theirs
  for (const Group& group : groups_) {
    const auto begin = static_cast<std::int64_t>(group.begin);
    const auto count = static_cast<std::int64_t>(group.end - group.begin);
    square -=
        (1 - kLevelDistortion[group.bits]) * variance.narrow(0, begin, count).sum().item<double>();
  }
  return std::sqrt(std::max(square, 0.0));
}

double SpectralBasis::expected_error(const at::Tensor& mean, const at::Tensor& outer) const {
  check(mean.sizes() == mean_.sizes() && outer.sizes() == at::IntArrayRef({dim(), dim()}),
        "moments of rows of width ", dim(), " expected, got a mean ", mean.sizes(),
        " and outer products ", outer.sizes());
  // Around the mean of this basis, not around their own.
  const at::Tensor center = mean_.to(at::kDouble);
  const at::Tensor crossed = at::outer(mean, center);
  const at::Tensor around = outer - crossed - crossed.t() + at::outer(center, center);
  const at::Tensor axes = expand_.narrow(0, 0, expand_.size(0) - 1).to(at::kDouble);
  return error_of(around.diagonal().sum().item<double>(), (at::mm(axes, around) * axes).sum(1));
}

at::Tensor SpectralBasis::encode(const at::Tensor& input) const {
  check(input.dim() == 2 && input.size(1) == dim(), "rows of width ", dim(), " expected, got ",
        input.sizes());
  const at::Tensor rows = input.to(at::kFloat).contiguous();
  const std::int64_t count = rows.size(0);
  const auto used = deviation_.size();
  const auto width = static_cast<std::size_t>(dim());
  const at::Tensor projected = at::mm(rows, project_);
  at::Tensor result = at::empty({count, row_bytes_}, at::kByte);
  const float* row = rows.const_data_ptr<float>();
  const float* coordinate = projected.const_data_ptr<float>();
  auto* out = static_cast<std::byte*>(result.mutable_data_ptr());
  const auto bytes = static_cast<std::size_t>(row_bytes_);
  at::parallel_for(0, count, kSpectralGrain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> c(used);
    std::vector<float> value(used);
    std::vector<std::int32_t> code(used);
    std::vector<std::byte> line(bytes + kPadding);
    for (std::int64_t i = begin; i < end; ++i) {
      const float* x = row + static_cast<std::size_t>(i) * width;
      const float* p = coordinate + static_cast<std::size_t>(i) * (used + 1);
      const double norm = std::sqrt(dot(x, x, width));
      const auto inverse = static_cast<float>(norm > 0 ? 1.0 / norm : 0.0);
      for (std::size_t j = 0; j < used; ++j) {
        c[j] = (p[j] * inverse - offset_[j]) * inverse_deviation_[j];
      }
      std::ranges::fill(line, std::byte{0});
      BitWriter bits(line.data() + kScaleBytes);
      for (const Group& group : groups_) {
        quantise(c.data() + group.begin, code.data() + group.begin, group.end - group.begin,
                 group.bits);
        const float* levels = levels_of(group.bits).data();
        for (std::size_t j = group.begin; j < group.end; ++j) {
          bits.put(static_cast<std::uint32_t>(code[j]), group.bits);
          value[j] = levels[code[j]] * deviation_[j];
        }
      }
      bits.finish();
      // <x, decoded> and |decoded|² at scale 1, in the basis.
      const double product = double{p[used]} + dot(value.data(), p, used);
      const double decoded_square = mean_square_ + dot(value.data(), value.data(), used) +
                                    2 * dot(value.data(), offset_.data(), used);
      double scale = decoded_square > 0 ? product / decoded_square : 0.0;
      if (!std::isfinite(norm)) scale = std::numeric_limits<double>::quiet_NaN();
      if (norm == 0) scale = 0;
      const std::uint16_t narrow = narrow_scale(scale);
      std::memcpy(line.data(), &narrow, sizeof(narrow));
      std::memcpy(out + static_cast<std::size_t>(i) * bytes, line.data(), bytes);
    }
  });
  return result;
}

at::Tensor SpectralBasis::decode(const at::Tensor& bytes, at::ScalarType dtype) const {
  if (bytes.dim() != 2 || bytes.size(1) != row_bytes_) {
    throw FrameError(concat("spectral rows of ", row_bytes_, " bytes expected, got shape ",
                            concat(bytes.sizes())));
  }
  const at::Tensor input = bytes.contiguous();
  const std::int64_t count = input.size(0);
  const auto used = deviation_.size();
  // Scaled components, then the scale, which is the factor of the mean.
  at::Tensor values = at::empty({count, static_cast<std::int64_t>(used + 1)}, at::kFloat);
  const auto* in = static_cast<const std::byte*>(input.const_data_ptr());
  float* value = values.mutable_data_ptr<float>();
  const auto row_bytes = static_cast<std::size_t>(row_bytes_);
  at::parallel_for(0, count, kSpectralGrain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::byte> line(row_bytes + kPadding);
    for (std::int64_t i = begin; i < end; ++i) {
      std::memcpy(line.data(), in + static_cast<std::size_t>(i) * row_bytes, row_bytes);
      std::uint16_t narrow = 0;
      std::memcpy(&narrow, line.data(), sizeof(narrow));
      const float scale = widen_scale(narrow);
      BitReader bits(line.data() + kScaleBytes);
      float* v = value + static_cast<std::size_t>(i) * (used + 1);
      for (const Group& group : groups_) {
        const float* levels = levels_of(group.bits).data();
        for (std::size_t j = group.begin; j < group.end; ++j) v[j] = levels[bits.take(group.bits)];
      }
      for (std::size_t j = 0; j < used; ++j) v[j] *= deviation_[j] * scale;
      v[used] = scale;
    }
  });
  return at::mm(values, expand_).to(dtype);
}

}  // namespace thinwire::moe
