// Fashion-MNIST (Xiao et al., 2017): 70,000 grey images of clothing, 28 x 28, ten classes.
#pragma once

#include <filesystem>

#include <torch/types.h>

namespace thinwire::examples {

struct ImageSet {
  torch::Tensor images;  // [N, 1, 28, 28], float32, normalised to mean 0 and deviation 1
  torch::Tensor labels;  // [N], int64, 0 to 9
};

struct FashionMnist {
  ImageSet train;  // 60,000
  ImageSet test;   // 10,000
};

// Where Debian's package dataset-fashion-mnist puts the files, or THINWIRE_DATA.
std::filesystem::path default_data_dir();

// Reads the four IDX files, plain or with .gz. Throws FileError, naming the file, when one is
// missing, is cut short or is not what its header says.
FashionMnist load_fashion_mnist(const std::filesystem::path& folder);

}  // namespace thinwire::examples
