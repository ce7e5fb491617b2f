#include "thinwire/compressors/lsh/rotation.h"

#include <bit>
#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/common/philox.h"

namespace thinwire::lsh {
namespace {

// Keeps the streams of rotations apart from those of the codecs ("LSH").
constexpr std::uint32_t kStage = 0x4C5348;

// In place of the hash's number, for what all hashes of a layer share.
constexpr std::uint32_t kSharedRound = 0xFFFFFFFFu;

PhiloxStream stream_of(const RotationSeed& seed, std::uint32_t hash) {
  return PhiloxStream::of({.seed = seed.seed,
                           .step = seed.generation,
                           .layer = seed.layer,
                           .rank = hash,
                           .stage = kStage});
}

// ln(x) of a normal x > 0 with additions, multiplications and divisions only: the C library may
// pick another log on another processor, and ranks must agree on every bit.
double portable_log(double x) {
  constexpr double kLn2 = 0.693147180559945309417232121458;
  int exponent = 0;
  const double mantissa = std::frexp(x, &exponent);  // in [0.5, 1)
  // ln m = 2 atanh z; |z| <= 1/3, so the term of z^33 is below 1e-17.
  const double z = (mantissa - 1.0) / (mantissa + 1.0);
  double power = z;
  double sum = 0;
  for (int k = 1; k <= 33; k += 2) {
    sum += power / k;
    power *= z * z;
  }
  return 2.0 * sum + exponent * kLn2;
}

// Standard normal numbers by Marsaglia's polar method, a function of the stream alone.
class NormalStream {
 public:
  explicit NormalStream(const PhiloxStream& stream) : stream_(stream) {}

  float next() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    for (;;) {
      const auto words = stream_.block(block_++);
      const double u = signed_unit(words[0], words[1]);
      const double v = signed_unit(words[2], words[3]);
      const double s = u * u + v * v;
      if (s >= 1.0 || s == 0.0) continue;
      const double factor = std::sqrt(-2.0 * portable_log(s) / s);
      spare_ = static_cast<float>(v * factor);
      has_spare_ = true;
      return static_cast<float>(u * factor);
    }
  }

 private:
  // Uniform in [-1, 1), a multiple of 2^-52.
  static double signed_unit(std::uint32_t low, std::uint32_t high) {
    const std::uint64_t bits = (static_cast<std::uint64_t>(high) << 32 | low) >> 11;
    return static_cast<double>(bits) * 0x1p-52 - 1.0;
  }

  PhiloxStream stream_;
  std::uint64_t block_ = 0;
  float spare_ = 0;
  bool has_spare_ = false;
};

}  // namespace

Rotation::Rotation(RotationKind kind, std::int64_t dim, std::int64_t outputs,
                   const RotationSeed& seed, int rounds)
    : kind_(kind), dim_(dim), outputs_(outputs), rounds_(rounds) {
  // The hash codes have 16 bits, one of them for the sign.
  constexpr std::int64_t kMaxOutputs = 1 << 14;
  constexpr std::int64_t kMaxDim = 1 << 24;
  check(dim >= 1 && dim <= kMaxDim, "a rotation needs a dimension from 1 to ", kMaxDim, ", got ",
        dim);
  check(outputs >= 1 && outputs <= dim && outputs <= kMaxOutputs,
        "a hash dimension must lie in [1, ", dim < kMaxOutputs ? dim : kMaxOutputs, "], got ",
        outputs);
  check(rounds >= 1 && rounds <= kRounds, "a rotation has 1 to 3 rounds, got ", rounds);
  padded_dim_ = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(dim)));
  padded_outputs_ = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(outputs)));

  if (kind == RotationKind::kHadamard) {
    signs_.resize(static_cast<std::size_t>(rounds * padded_dim_));
    for (int round = 0; round < rounds; ++round) {
      const auto stream = stream_of(seed, round == 0 ? kSharedRound : seed.hash);
      const std::uint64_t first = static_cast<std::uint64_t>(round) << 32;
      const auto out = std::span(signs_).subspan(static_cast<std::size_t>(round * padded_dim_),
                                                 static_cast<std::size_t>(padded_dim_));
      for (std::size_t i = 0; i < out.size(); ++i) {
        out[i] = stream.word(first + i) & 0x80000000u;
      }
    }
  } else {
    matrix_.resize(static_cast<std::size_t>(outputs * dim));
    NormalStream normal(stream_of(seed, seed.hash));
    for (float& value : matrix_) value = normal.next();
  }
}

std::span<const std::uint32_t> Rotation::signs(int round) const {
  THINWIRE_ASSERT(kind_ == RotationKind::kHadamard && round >= 0 && round < rounds_);
  const auto n = static_cast<std::size_t>(padded_dim_);
  return std::span(signs_).subspan(static_cast<std::size_t>(round) * n, n);
}

}  // namespace thinwire::lsh
