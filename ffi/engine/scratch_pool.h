// Scratch of the slices in flight, kept between calls: fresh memory costs a page fault for every
// page that is touched, several times what it costs to fill it.
//
// Thread rule: its owner's lock.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace jaxcoll {

class ScratchPool {
 public:
  struct Block {
    std::unique_ptr<std::byte[]> bytes;
    size_t size = 0;
  };

  // At least `size` bytes, whatever is in them.
  Block Take(size_t size) {
    if (size == 0) return {};
    // The last one is the likeliest to be in cache.
    for (size_t i = kept_.size(); i-- > 0;) {
      if (kept_[i].size < size) continue;
      Block block = std::move(kept_[i]);
      kept_.erase(kept_.begin() + static_cast<ptrdiff_t>(i));
      kept_bytes_ -= block.size;
      return block;
    }
    return {std::make_unique_for_overwrite<std::byte[]>(size), size};
  }

  void Give(Block block) {
    if (block.size == 0 || block.size > kMostBytes) return;
    kept_bytes_ += block.size;
    kept_.push_back(std::move(block));
    while (kept_bytes_ > kMostBytes) {
      kept_bytes_ -= kept_.front().size;
      kept_.erase(kept_.begin());
    }
  }

  static constexpr size_t kMostBytes = size_t{8} << 20;  // that it keeps

 private:
  std::vector<Block> kept_;
  size_t kept_bytes_ = 0;
};

}  // namespace jaxcoll
