#include "thinwire/compressors/kernels/columns.h"

#include <algorithm>

#include "thinwire/common/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/kernels/columns_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DColumns = hn::CappedTag<float, 16>;
using DPlaces = hn::RebindToSigned<DColumns>;
constexpr std::size_t kAtOnce = hn::MaxLanes(DColumns());

// Calls visit(tag, index) for all elements of a run: whole vectors, of which the last one may do
// some elements again, or single ones.
template <typename Visit>
HWY_INLINE void OverRun(std::size_t count, const Visit& visit) {
  const DColumns d;
  if (count < kAtOnce) {
    for (std::size_t i = 0; i < count; ++i) visit(hn::CappedTag<float, 1>(), i);
    return;
  }
  for (std::size_t i = 0; i + kAtOnce <= count; i += kAtOnce) visit(d, i);
  if (count % kAtOnce != 0) visit(d, count - kAtOnce);
}

void TakeColumns(const float* values, std::size_t rows, const std::int32_t* order,
                 std::size_t columns, const std::int32_t* ends, std::size_t groups,
                 const float* less, float* out) {
  for (std::size_t row = 0; row < rows; ++row) {
    const float* const from = values + row * columns;
    std::size_t first = 0;
    for (std::size_t g = 0; g < groups; ++g) {
      const std::size_t width = static_cast<std::size_t>(ends[g]) - first;
      float* const to = out + first * rows + row * width;
      const std::int32_t* const column = order + first;
      OverRun(width, [&](auto d, std::size_t i) HWY_ATTR {
        const auto at = hn::LoadU(hn::RebindToSigned<decltype(d)>(), column + i);
        const auto value = hn::GatherIndex(d, from, at);
        hn::StoreU(hn::Sub(value, hn::LoadU(d, less + first + i)), d, to + i);
      });
      first += width;
    }
  }
}

void PutColumns(const float* in, std::size_t rows, std::size_t columns, const float* more,
                std::int32_t* places, const std::int32_t* widths, float* values) {
  for (std::size_t row = 0; row < rows; ++row) {
    float* const to = values + row * columns;
    const auto put = [&](auto d, std::size_t i) HWY_ATTR {
      const hn::RebindToSigned<decltype(d)> di;
      const auto place = hn::LoadU(di, places + i);
      hn::StoreU(hn::Add(hn::GatherIndex(d, in, place), hn::LoadU(d, more + i)), d, to + i);
      hn::StoreU(hn::Add(place, hn::LoadU(di, widths + i)), di, places + i);
    };
    std::size_t i = 0;
    for (; i + kAtOnce <= columns; i += kAtOnce) put(DColumns(), i);
    for (; i < columns; ++i) put(hn::CappedTag<float, 1>(), i);
  }
}

void ColumnSums(const float* values, std::size_t rows, std::size_t columns, std::size_t stride,
                double* sums, double* squares) {
  std::fill_n(sums, columns, 0.0);
  std::fill_n(squares, columns, 0.0);
  for (std::size_t row = 0; row < rows; row += stride) {
    const float* const from = values + row * columns;
    const auto add = [&](auto d, std::size_t i) HWY_ATTR {
      const auto value = hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, decltype(d)>(), from + i));
      hn::StoreU(hn::Add(hn::LoadU(d, sums + i), value), d, sums + i);
      hn::StoreU(hn::Add(hn::LoadU(d, squares + i), hn::Mul(value, value)), d, squares + i);
    };
    const hn::CappedTag<double, 8> d;
    std::size_t i = 0;
    for (; i + hn::Lanes(d) <= columns; i += hn::Lanes(d)) add(d, i);
    for (; i < columns; ++i) add(hn::CappedTag<double, 1>(), i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::kernels {

HWY_EXPORT(TakeColumns);
HWY_EXPORT(PutColumns);
HWY_EXPORT(ColumnSums);

void take_columns(const float* values, std::size_t rows, const ColumnGroups& groups,
                  const float* less, float* out) {
  THINWIRE_DISPATCH(TakeColumns)
  (values, rows, groups.order.data(), groups.order.size(), groups.ends.data(), groups.ends.size(),
   less, out);
}

void put_columns(const float* in, std::size_t rows, const ColumnGroups& groups, const float* more,
                 std::span<std::int32_t> places, std::span<std::int32_t> widths, float* values) {
  const std::size_t columns = groups.order.size();
  THINWIRE_ASSERT(places.size() == columns && widths.size() == columns &&
                  rows * columns < std::size_t{1} << 31);
  std::int32_t first = 0;
  for (const std::int32_t end : groups.ends) {
    for (std::int32_t i = first; i < end; ++i) {
      const auto column = static_cast<std::size_t>(groups.order[static_cast<std::size_t>(i)]);
      places[column] = first * static_cast<std::int32_t>(rows) + (i - first);
      widths[column] = end - first;
    }
    first = end;
  }
  THINWIRE_DISPATCH(PutColumns)
  (in, rows, columns, more, places.data(), widths.data(), values);
}

void column_sums(const float* values, std::size_t rows, std::size_t columns, std::size_t stride,
                 double* sums, double* squares) {
  THINWIRE_DISPATCH(ColumnSums)(values, rows, columns, stride, sums, squares);
}

}  // namespace thinwire::kernels
#endif  // HWY_ONCE
