// A run of entries of a delta, read a block at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "thinwire/compressors/view/tensor_view.h"

namespace thinwire::peft {

// A run of consecutive entries of the concatenated vector: tuned - base, computed in float32 (in
// float64 first where a tensor is float64). The memory may be unaligned, and it is read several
// times, a block at a time: a mapped file never needs to be in memory as a whole.
struct DeltaPiece {
  ConstTensorView tuned;
  ConstTensorView base;        // data null: the base is `base_constant` everywhere
  float base_constant = 0.0f;  // 0 for LoRA's factors, 1 for IA3's vectors
  std::int64_t offset = 0;     // of the first entry in the concatenated vector
  std::string name;            // for messages
};

// Writes entries [begin, begin + out.size()) of the piece's delta.
void load_delta(const DeltaPiece& piece, std::int64_t begin, std::span<float> out);

namespace detail {

// Calls visit(index of the piece, first entry, values) for chunk after chunk of all pieces, and
// tells `progress` the entries read since the last call of it.
template <typename Visit>
void for_each_chunk(std::span<const DeltaPiece> pieces,
                    const std::function<void(std::int64_t)>& progress, Visit visit) {
  constexpr std::int64_t kReadAtOnce = 16384;
  std::array<float, kReadAtOnce> buffer;
  for (std::size_t p = 0; p < pieces.size(); ++p) {
    const DeltaPiece& piece = pieces[p];
    for (std::int64_t begin = 0; begin < piece.tuned.numel; begin += kReadAtOnce) {
      const auto n = static_cast<std::size_t>(std::min(kReadAtOnce, piece.tuned.numel - begin));
      const std::span<float> values(buffer.data(), n);
      load_delta(piece, begin, values);
      visit(p, begin, std::span<const float>(values));
      if (progress) progress(static_cast<std::int64_t>(n));
    }
  }
}

}  // namespace detail
}  // namespace thinwire::peft
