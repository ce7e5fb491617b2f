// Aligned columns for the program's output.
#pragma once

#include <ostream>
#include <string>
#include <vector>

namespace thinwire {

// Rows of cells, padded to the widest of each column and separated by two blanks; the last column
// is not padded. Columns named in `right` (by index) are aligned to the right. Cells are escaped
// (see printable.h), for many hold names out of files.
class Table {
 public:
  explicit Table(std::vector<std::size_t> right = {}) : right_(std::move(right)) {}

  void add(const std::vector<std::string>& row);
  void print(std::ostream& out, const std::string& indent = "  ") const;

 private:
  std::vector<std::size_t> right_;
  std::vector<std::vector<std::string>> rows_;
};

// 4194304 -> "4,194,304"
std::string with_commas(long long value);

}  // namespace thinwire
