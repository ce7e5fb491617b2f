// Philox in vectors: many blocks of a PhiloxStream at once. Included once per SIMD target.

#if defined(THINWIRE_COMPRESSORS_KERNELS_PHILOX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_COMPRESSORS_KERNELS_PHILOX_INL_H_
#undef THINWIRE_COMPRESSORS_KERNELS_PHILOX_INL_H_
#else
#define THINWIRE_COMPRESSORS_KERNELS_PHILOX_INL_H_
#endif

#include <hwy/highway.h>

#include "thinwire/common/philox.h"

#if HWY_TARGET != HWY_SCALAR  // which has no lanes to multiply in pairs

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {

// The words of kChains vectors of consecutive blocks from `first` on. A 64-bit lane holds one
// 32-bit word of one block: the widening multiplication reads just the low half of a lane, so the
// high halves may hold anything until the end. Several chains at once, since each step of a chain
// waits for the one before.
template <std::size_t kChains, class D>
HWY_INLINE void PhiloxVectors(D d, const PhiloxStream& stream, std::uint64_t first,
                              std::uint32_t* out) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RepartitionToNarrow<D> d32;
  const std::size_t lanes = hn::Lanes(d);
  const auto low = hn::Set(d, 0xFFFFFFFFu);
  const auto multiplier0 = hn::Set(d, 0xD2511F53u), multiplier1 = hn::Set(d, 0xCD9E8D57u);
  hn::Vec<D> c0[kChains], c1[kChains], c2[kChains], c3[kChains];
  for (std::size_t chain = 0; chain < kChains; ++chain) {
    // Not Iota of a variable: gcc stores its lanes one by one, and reading them back stalls.
    c0[chain] = hn::Add(hn::Iota(d, 0), hn::Set(d, first + chain * lanes));
    c1[chain] = hn::ShiftRight<32>(c0[chain]);
    c2[chain] = hn::Set(d, stream.salt[0]);
    c3[chain] = hn::Set(d, stream.salt[1]);
  }
  std::uint32_t k0 = stream.key[0], k1 = stream.key[1];
  for (int round = 0; round < 10; ++round) {
    const auto key0 = hn::Set(d, k0), key1 = hn::Set(d, k1);
    for (std::size_t chain = 0; chain < kChains; ++chain) {
      const auto p0 = hn::MulEven(hn::BitCast(d32, c0[chain]), hn::BitCast(d32, multiplier0));
      const auto p1 = hn::MulEven(hn::BitCast(d32, c2[chain]), hn::BitCast(d32, multiplier1));
      c0[chain] = hn::Xor3(hn::ShiftRight<32>(p1), c1[chain], key0);
      c2[chain] = hn::Xor3(hn::ShiftRight<32>(p0), c3[chain], key1);
      c1[chain] = p1;
      c3[chain] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (std::size_t chain = 0; chain < kChains; ++chain) {
    const auto w01 = hn::Or(hn::And(c0[chain], low), hn::ShiftLeft<32>(c1[chain]));
    const auto w23 = hn::Or(hn::And(c2[chain], low), hn::ShiftLeft<32>(c3[chain]));
    hn::StoreInterleaved2(w01, w23, d, reinterpret_cast<std::uint64_t*>(out) + 2 * chain * lanes);
  }
}

// Writes the words of `blocks` (a multiple of 8) blocks from block `first` on, in the order of the
// stream.
HWY_ATTR inline void PhiloxBlocks(const PhiloxStream& stream, std::uint64_t first,
                                  std::size_t blocks, std::uint32_t* out) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::CappedTag<std::uint64_t, 8> d;
  const std::size_t lanes = hn::Lanes(d);
  // Four chains fill 16 registers of AVX-512; other targets have no more than 16 in all.
  constexpr std::size_t kChains = hn::MaxLanes(hn::CappedTag<std::uint64_t, 8>()) == 8 ? 4 : 2;
  std::size_t block = 0;
  for (; block + kChains * lanes <= blocks; block += kChains * lanes) {
    PhiloxVectors<kChains>(d, stream, first + block, out + 4 * block);
  }
  for (; block < blocks; block += lanes) {
    PhiloxVectors<1>(d, stream, first + block, out + 4 * block);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR

#endif  // per-target include guard
