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

// Writes the words of `blocks` (a multiple of 8) blocks from block `first` on, in the order of the
// stream. A 64-bit lane holds one 32-bit word of one block: the widening multiplication reads just
// the low half of a lane, so the high halves may hold anything until the end.
HWY_ATTR inline void PhiloxBlocks(const PhiloxStream& stream, std::uint64_t first,
                                  std::size_t blocks, std::uint32_t* out) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::CappedTag<std::uint64_t, 8> d;
  const hn::RepartitionToNarrow<decltype(d)> d32;
  const std::size_t lanes = hn::Lanes(d);
  const auto set = [&](std::uint32_t value) HWY_ATTR { return hn::Set(d, std::uint64_t{value}); };
  const auto multiply = [&](auto a, auto b) HWY_ATTR {
    return hn::MulEven(hn::BitCast(d32, a), hn::BitCast(d32, b));
  };
  const auto low = set(0xFFFFFFFFu);
  for (std::size_t block = 0; block < blocks; block += lanes) {
    const auto index = hn::Iota(d, first + block);
    auto c0 = index;
    auto c1 = hn::ShiftRight<32>(index);
    auto c2 = set(stream.salt[0]);
    auto c3 = set(stream.salt[1]);
    std::uint32_t k0 = stream.key[0], k1 = stream.key[1];
    for (int round = 0; round < 10; ++round) {
      const auto p0 = multiply(c0, set(0xD2511F53u));
      const auto p1 = multiply(c2, set(0xCD9E8D57u));
      c0 = hn::Xor3(hn::ShiftRight<32>(p1), c1, set(k0));
      c2 = hn::Xor3(hn::ShiftRight<32>(p0), c3, set(k1));
      c1 = p1;
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const auto w01 = hn::Or(hn::And(c0, low), hn::ShiftLeft<32>(c1));
    const auto w23 = hn::Or(hn::And(c2, low), hn::ShiftLeft<32>(c3));
    hn::StoreInterleaved2(w01, w23, d, reinterpret_cast<std::uint64_t*>(out) + 2 * block);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR

#endif  // per-target include guard
