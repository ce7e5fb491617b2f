#include "thinwire/examples/support/fashion_mnist.h"

#include <zlib.h>

#include <boost/endian/conversion.hpp>
#include <cstring>
#include <memory>
#include <vector>

#include "thinwire/common/env.h"
#include "thinwire/common/error.h"

namespace thinwire::examples {
namespace {

// The training set's own statistics, so that every rank normalises alike without looking.
constexpr double kMean = 0.2860;
constexpr double kDeviation = 0.3530;

struct CloseGzip {
  void operator()(gzFile file) const { gzclose(file); }
};

std::filesystem::path find_file(const std::filesystem::path& folder, const std::string& name) {
  for (const char* ending : {".gz", ""}) {
    const auto path = folder / (name + ending);
    if (std::filesystem::exists(path)) return path;
  }
  throw FileError(
      concat("Fashion-MNIST: neither ", name, ".gz nor ", name, " is in ", folder.string(),
             "; install Debian's package dataset-fashion-mnist, or name the folder with "
             "--data or THINWIRE_DATA"));
}

// An IDX file: 0, 0, type (8 = unsigned byte), number of dimensions, then the sizes as big-endian
// 32-bit numbers, then the data.
torch::Tensor read_idx(const std::filesystem::path& path, std::size_t dimensions) {
  const std::unique_ptr<gzFile_s, CloseGzip> file(gzopen(path.c_str(), "rb"));
  if (!file) throw FileError(concat(path.string(), ": ", std::strerror(errno)));
  const auto read = [&](void* into, std::size_t bytes) {
    if (gzread(file.get(), into, static_cast<unsigned>(bytes)) != static_cast<int>(bytes)) {
      throw FileError(concat(path.string(), ": the file is cut short or damaged"));
    }
  };
  std::uint8_t magic[4];
  read(magic, sizeof(magic));
  if (magic[0] != 0 || magic[1] != 0 || magic[2] != 8 || magic[3] != dimensions) {
    throw FileError(concat(path.string(), ": not an IDX file of bytes with ", dimensions,
                           " dimensions; its type is ", int{magic[2]}, " with ", int{magic[3]}));
  }
  std::vector<std::int64_t> shape;
  std::int64_t numel = 1;
  for (std::size_t d = 0; d < dimensions; ++d) {
    std::uint32_t size = 0;
    read(&size, sizeof(size));
    boost::endian::big_to_native_inplace(size);
    shape.push_back(size);
    numel *= size;
    constexpr std::int64_t kLargest = std::int64_t{1} << 30;
    if (numel > kLargest) throw FileError(concat(path.string(), ": claims more than 1 GiB"));
  }
  torch::Tensor values = torch::empty(shape, torch::kUInt8);
  read(values.mutable_data_ptr(), static_cast<std::size_t>(numel));
  return values;
}

ImageSet read_set(const std::filesystem::path& folder, const std::string& prefix) {
  const auto images_path = find_file(folder, prefix + "-images-idx3-ubyte");
  const auto labels_path = find_file(folder, prefix + "-labels-idx1-ubyte");
  const torch::Tensor images = read_idx(images_path, 3);
  const torch::Tensor labels = read_idx(labels_path, 1);
  if (images.size(0) != labels.size(0) || images.size(1) != 28 || images.size(2) != 28) {
    throw FileError(concat(images_path.string(), " holds images ", images.sizes(), " and ",
                           labels_path.string(), " labels ", labels.sizes(),
                           "; they do not belong together"));
  }
  return {images.unsqueeze(1).to(torch::kFloat).div_(255).sub_(kMean).div_(kDeviation),
          labels.to(torch::kLong)};
}

}  // namespace

std::filesystem::path default_data_dir() {
  const std::string& chosen = Env::get().data_dir;
  return chosen.empty() ? "/usr/share/datasets/fashion-mnist" : chosen;
}

FashionMnist load_fashion_mnist(const std::filesystem::path& folder) {
  return {read_set(folder, "train"), read_set(folder, "t10k")};
}

}  // namespace thinwire::examples
