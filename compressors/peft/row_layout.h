// Where the rows of a file's tensors lie in its blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "thinwire/compressors/peft/container.h"

namespace thinwire::peft::detail {

class RowLayout {
 public:
  explicit RowLayout(const Manifest& manifest);

  // The rows of one block's entries, tensor by tensor. A tensor of two and more dimensions has rows
  // of all its dimensions but the first; others are one row. None where the manifest's tensors are
  // not the whole vector.
  void rows_of(std::int64_t block, std::vector<BlockRows>& rows) const;

 private:
  struct Tensor {
    std::int64_t begin, end;  // in the ternary vector
    std::int64_t columns;
  };
  std::vector<Tensor> tensors_;  // that have entries, in order
  std::int64_t numel_ = 0;
};

}  // namespace thinwire::peft::detail
