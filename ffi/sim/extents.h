// The data that ops move, deduplicated: lists of chunk intervals by position within a block. A ring
// of a thousand ranks has a million ops and a hundred of these.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "schedule/schedule.h"
#include "sim/network.h"

namespace jaxcoll::sim {

class ExtentTable {
 public:
  // The number of this extent; equal ones have equal numbers.
  uint32_t Intern(int32_t arity, std::span<const Interval> chunks) {
    uint64_t hash = Mix(static_cast<uint64_t>(arity), chunks.size());
    for (const Interval& interval : chunks) {
      hash = Mix(hash, uint64_t(interval.begin) << 32 | uint64_t(interval.count));
    }
    for (;; ++hash) {  // past others of the same hash
      const auto [entry, is_new] = by_hash_.try_emplace(hash, size());
      if (is_new) break;
      if (Equal(entry->second, arity, chunks)) return entry->second;
    }
    arity_.push_back(arity);
    chunks_.insert(chunks_.end(), chunks.begin(), chunks.end());
    end_.push_back(chunks_.size());
    return size() - 1;
  }

  uint32_t size() const { return static_cast<uint32_t>(arity_.size()); }
  int32_t arity(uint32_t extent) const { return arity_[extent]; }
  std::span<const Interval> chunks(uint32_t extent) const {
    const size_t begin = extent == 0 ? 0 : end_[extent - 1];
    return {chunks_.data() + begin, end_[extent] - begin};
  }
  size_t bytes() const {
    return arity_.size() * 32 + chunks_.size() * sizeof(Interval);  // with the hash table, about
  }

 private:
  bool Equal(uint32_t extent, int32_t arity, std::span<const Interval> chunks) const {
    const auto known = this->chunks(extent);
    return arity_[extent] == arity && known.size() == chunks.size() &&
           std::equal(known.begin(), known.end(), chunks.begin());
  }

  std::unordered_map<uint64_t, uint32_t> by_hash_;
  std::vector<int32_t> arity_;  // sources of a reduce, 1 for other ops
  std::vector<Interval> chunks_;
  std::vector<size_t> end_;  // by extent, in chunks_
};

}  // namespace jaxcoll::sim
