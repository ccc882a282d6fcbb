// The flow that ends next: a binary heap in which a flow's end may be moved.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "sim/network.h"

namespace jaxcoll::sim {

class FlowHeap {
 public:
  struct Entry {
    Time end;
    uint64_t order;  // breaks ties the same way in every run
    int32_t flow;
    bool operator<(const Entry& other) const {
      return end != other.end ? end < other.end : order < other.order;
    }
  };

  bool empty() const { return heap_.empty(); }
  const Entry& top() const { return heap_.front(); }

  void Set(int32_t flow, Time end, uint64_t order) {
    if (static_cast<size_t>(flow) >= place_.size()) place_.resize(flow + 1, kAbsent);
    if (place_[flow] == kAbsent) {
      place_[flow] = static_cast<int32_t>(heap_.size());
      heap_.push_back({end, order, flow});
    } else {
      heap_[place_[flow]] = {end, order, flow};
    }
    Down(Up(place_[flow]));
  }

  void Erase(int32_t flow) {
    if (static_cast<size_t>(flow) >= place_.size() || place_[flow] == kAbsent) return;
    const int32_t hole = place_[flow];
    place_[flow] = kAbsent;
    const Entry last = heap_.back();
    heap_.pop_back();
    if (last.flow == flow) return;
    heap_[hole] = last;
    place_[last.flow] = hole;
    Down(Up(hole));
  }

 private:
  static constexpr int32_t kAbsent = -1;

  int32_t Up(int32_t i) {
    while (i > 0 && heap_[i] < heap_[(i - 1) / 2]) {
      Swap(i, (i - 1) / 2);
      i = (i - 1) / 2;
    }
    return i;
  }
  void Down(int32_t i) {
    const int32_t size = static_cast<int32_t>(heap_.size());
    while (true) {
      int32_t least = i;
      for (int32_t child : {2 * i + 1, 2 * i + 2}) {
        if (child < size && heap_[child] < heap_[least]) least = child;
      }
      if (least == i) return;
      Swap(i, least);
      i = least;
    }
  }
  void Swap(int32_t a, int32_t b) {
    std::swap(heap_[a], heap_[b]);
    place_[heap_[a].flow] = a;
    place_[heap_[b].flow] = b;
  }

  std::vector<Entry> heap_;
  std::vector<int32_t> place_;  // by flow
};

}  // namespace jaxcoll::sim
