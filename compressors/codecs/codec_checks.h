// Checks that every codec makes of its arguments.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "thinwire/common/error.h"
#include "thinwire/compressors/view/tensor_view.h"

namespace thinwire {

template <typename Pointer>
void check_view(std::string_view codec, const BasicTensorView<Pointer>& view) {
  check(view.numel >= 0, codec, ": a tensor cannot have ", view.numel, " elements");
  check(size_of(view.dtype) > 0, codec, ": unknown element type ", static_cast<int>(view.dtype));
  check(view.data != nullptr || view.numel == 0, codec, ": the tensor has no memory");
}

template <typename Pointer>
void check_on_cpu(std::string_view codec, const BasicTensorView<Pointer>& view) {
  check(view.device == Device::kCpu, codec, ": this codec takes tensors in host memory only");
}

// For compress_and_reconstruct().
inline void check_same_kind(const ConstTensorView& input, const TensorView& reconstruction) {
  check(reconstruction.numel == input.numel && reconstruction.dtype == input.dtype &&
            reconstruction.device == input.device &&
            (reconstruction.data != nullptr || input.numel == 0),
        "the reconstruction has ", reconstruction.numel, " elements of ",
        name_of(reconstruction.dtype), ", the input ", input.numel, " of ", name_of(input.dtype));
}

// For compress_and_subtract().
inline void check_subtractable(const TensorView& values) {
  check(values.dtype == DType::kFloat32 && values.device == Device::kCpu &&
            (values.data != nullptr || values.numel == 0),
        "what a payload lost is kept in float32 in host memory, not in ", name_of(values.dtype));
}

inline void check_output(std::string_view codec, std::span<const std::byte> output,
                         std::size_t needed) {
  check(output.size() >= needed, codec, ": the output buffer has ", output.size(), " bytes, but ",
        needed, " are needed");
}

// For codecs whose payload length follows from the tensor.
inline void check_payload_size(std::string_view codec, std::span<const std::byte> input,
                               std::size_t expected, std::int64_t numel) {
  if (input.size() != expected) [[unlikely]] {
    throw FrameError(concat(codec, ": a payload of ", numel, " elements has ", expected,
                            " bytes, but ", input.size(), " arrived"));
  }
}

}  // namespace thinwire
