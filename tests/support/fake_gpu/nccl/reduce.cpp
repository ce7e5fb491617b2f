#include "thinwire/tests/support/fake_gpu/nccl/reduce.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "thinwire/compressors/kernels/half_math.h"

namespace thinwire::fake_gpu {
namespace {

// A type of NCCL: how it is kept and what is computed with.
template <typename Number>
struct Plain {
  using Stored = Number;
  static Number load(Number value) { return value; }
  static Number store(Number value) { return value; }
};
struct Half {
  using Stored = std::uint16_t;
  static float load(Stored value) { return kernels::float_from_half(value); }
  static Stored store(float value) { return kernels::half_from_float(value); }
};
struct Bfloat {
  using Stored = std::uint16_t;
  static float load(Stored value) { return kernels::float_from_bfloat(value); }
  static Stored store(float value) { return kernels::bfloat_from_float(value); }
};

template <typename Use>
bool with_type(ncclDataType_t type, const Use& use) {
  switch (type) {
    case ncclInt8:
      return use(Plain<std::int8_t>{});
    case ncclUint8:
      return use(Plain<std::uint8_t>{});
    case ncclInt32:
      return use(Plain<std::int32_t>{});
    case ncclUint32:
      return use(Plain<std::uint32_t>{});
    case ncclInt64:
      return use(Plain<std::int64_t>{});
    case ncclUint64:
      return use(Plain<std::uint64_t>{});
    case ncclFloat16:
      return use(Half{});
    case ncclBfloat16:
      return use(Bfloat{});
    case ncclFloat32:
      return use(Plain<float>{});
    case ncclFloat64:
      return use(Plain<double>{});
    default:
      return false;
  }
}

template <typename Number>
Number combined(ncclRedOp_t operation, Number a, Number b) {
  switch (operation) {
    case ncclProd:
      return static_cast<Number>(a * b);
    case ncclMax:
      return std::max(a, b);
    case ncclMin:
      return std::min(a, b);
    default:
      return static_cast<Number>(a + b);
  }
}

}  // namespace

std::size_t size_of(ncclDataType_t type) {
  std::size_t bytes = 1;  // of the float8 types too, which are sent and never added
  with_type(type, [&](auto kind) {
    bytes = sizeof(typename decltype(kind)::Stored);
    return true;
  });
  return bytes;
}

bool can_reduce(ncclDataType_t type, ncclRedOp_t operation) {
  return operation <= ncclAvg && with_type(type, [](auto) { return true; });
}

void reduce(const std::vector<std::vector<std::byte>>& parts, ncclDataType_t type,
            ncclRedOp_t operation, std::byte* result) {
  with_type(type, [&](auto kind) {
    using Kind = decltype(kind);
    using Stored = typename Kind::Stored;
    const std::size_t count = parts.front().size() / sizeof(Stored);
    const auto part = [&](std::size_t rank, std::size_t i) {
      Stored value;
      std::memcpy(&value, parts[rank].data() + i * sizeof value, sizeof value);
      return value;
    };
    for (std::size_t i = 0; i < count; ++i) {
      Stored sum = part(0, i);
      for (std::size_t rank = 1; rank < parts.size(); ++rank)
        sum = Kind::store(combined(operation, Kind::load(sum), Kind::load(part(rank, i))));
      if (operation == ncclAvg) {
        using Number = decltype(Kind::load(sum));
        sum = Kind::store(static_cast<Number>(Kind::load(sum) / static_cast<Number>(parts.size())));
      }
      std::memcpy(result + i * sizeof sum, &sum, sizeof sum);
    }
    return true;
  });
}

}  // namespace thinwire::fake_gpu
