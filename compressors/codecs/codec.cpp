#include "thinwire/compressors/codecs/codec.h"

#include <algorithm>

#include "thinwire/compressors/codecs/codec_checks.h"
#include "thinwire/compressors/kernels/float_arrays.h"
#include "thinwire/compressors/kernels/piece_task.h"
#include "thinwire/compressors/kernels/sparse_task.h"

namespace thinwire {

std::optional<kernels::PieceFormat> Codec::piece_format() const {
  return std::nullopt;
}

std::optional<kernels::EntryForm> Codec::entry_form() const {
  return std::nullopt;
}

std::shared_ptr<const Codec> Codec::with_density(double) const {
  return nullptr;
}

std::size_t Codec::compress_and_reconstruct(ConstTensorView input, const RandomKey& key,
                                            std::span<std::byte> output,
                                            TensorView reconstruction) const {
  check_same_kind(input, reconstruction);
  const std::size_t bytes = compress(input, key, output);
  decompress(output.first(bytes), key, reconstruction, WriteMode::kAssign);
  return bytes;
}

std::size_t Codec::compress_and_subtract(TensorView values, const RandomKey& key,
                                         std::span<std::byte> output) const {
  check_subtractable(values);
  thread_local std::vector<float> scratch;
  scratch.resize(std::max(scratch.size(), static_cast<std::size_t>(values.numel)));
  TensorView reconstruction = values;
  reconstruction.data = scratch.data();
  const std::size_t bytes = compress_and_reconstruct(as_const(values), key, output, reconstruction);
  kernels::subtract({static_cast<float*>(values.data), static_cast<std::size_t>(values.numel)},
                    scratch.data());
  return bytes;
}

bool Codec::decompress_entries(std::span<const std::byte>, std::int64_t, SparseEntries&) const {
  return false;
}

void SparseEntries::resize(std::size_t count) {
  const auto fit = [count](auto& numbers) {
    if (count > numbers.capacity()) numbers.reserve(count + count / 8);
    numbers.resize(count);
  };
  fit(indices);
  fit(values);
}

void SparseEntries::clear() {
  indices.clear();
  values.clear();
}

void SparseEntries::add(std::uint32_t index, float value) {
  indices.push_back(index);
  values.push_back(value);
}

}  // namespace thinwire
