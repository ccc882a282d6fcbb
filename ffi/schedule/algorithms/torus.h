// Ranks as the points of a torus, for the algorithms that follow its links.
#pragma once

#include <cstdint>
#include <vector>

namespace jaxcoll {

// Rank = coordinates in row-major order, the last dimension varying fastest. Dimensions of one
// point have no links and are left out. Immutable.
class Torus {
 public:
  explicit Torus(const std::vector<int32_t>& dims) {
    int32_t stride = 1;
    for (auto extent = dims.rbegin(); extent != dims.rend(); ++extent) {
      if (*extent > 1) sides_.insert(sides_.begin(), {*extent, stride});
      stride *= *extent;
    }
    size_ = stride;
  }

  int32_t size() const { return size_; }
  int32_t dimensions() const { return static_cast<int32_t>(sides_.size()); }
  int32_t ports() const { return 2 * dimensions(); }  // there and back along each dimension
  int32_t Extent(int32_t d) const { return sides_[d].extent; }
  int32_t Coordinate(int32_t rank, int32_t d) const {
    return rank / sides_[d].stride % sides_[d].extent;
  }
  // The rank whose coordinate in dimension d is replaced, modulo the extent.
  int32_t With(int32_t rank, int32_t d, int32_t coordinate) const {
    const auto [extent, stride] = sides_[d];
    const int32_t wrapped = (coordinate % extent + extent) % extent;
    return rank + (wrapped - Coordinate(rank, d)) * stride;
  }

 private:
  struct Side {
    int32_t extent;
    int32_t stride;
  };
  std::vector<Side> sides_;
  int32_t size_;
};

}  // namespace jaxcoll
